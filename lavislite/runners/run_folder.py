"""A run folder belongs to one training at a time, and is tidy when that begins."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import IO

from lavislite.common.errors import TrainingError
from lavislite.common.io import clear_leftovers
from lavislite.common.logging import get_logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)

_PATIENCE_SECONDS = 150.0  # a predecessor may be saving; the lock of a lost machine lapses


def take_folder(run_dir: Path, lock: RunLock) -> None:
    """Make the folder if need be, take its lock, and remove what a kill has left half written.

    Raises:
        TrainingError: another process is writing there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "results"):
        clear_leftovers(folder)


class RunLock:
    """Held by the main process while it trains; the system frees it however the process ends.

    Where the file system or the platform knows no locks, nothing is checked. It is a record lock:
    worker processes do not inherit it, so one that outlives its parent does not keep it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ".lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Wait a while for whoever holds the lock.

        Raises:
            TrainingError: somebody still does; the message names machine and process.
        """
        if fcntl is None:
            return
        file = self._path.open("a+", encoding="utf-8")
        deadline, told = time.monotonic() + _PATIENCE_SECONDS, False
        while not _try(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                file.close()
                raise TrainingError(
                    f"{self._path.parent} is being written to by {holder}. End that process to "
                    "continue its run, or start a new run without run.resume."
                )
            if not told:
                logger.info("Waiting for %s, which is writing to this run folder.", holder)
            told = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _try(file: IO[str]) -> bool:
    """Take the lock, unless somebody has it; true as well where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning("No lock on the run folder (%s): start it only once at a time.", error)
    return True
