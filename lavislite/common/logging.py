"""Console messages from rank 0, through the standard library's logging."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Hashable

_ROOT = "lavislite"
_warned: set[Hashable] = set()
_writing = threading.RLock()


def _renew_lock() -> None:
    """A process that was forked waits for no other's line."""
    global _writing
    _writing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Console(logging.Handler):
    """Writes to stderr from rank 0; other ranks speak up for errors only.

    Silent when the application has handlers of its own on the root logger: records reach those.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        rank = os.environ.get("RANK", "0")
        if rank != "0" and record.levelno < logging.ERROR:
            return
        where = "" if rank == "0" else f"[rank {rank}] "
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{where}{level}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + logging.Formatter().formatException(record.exc_info)
        _write(line)


def _write(line: str) -> None:
    if "tqdm" in sys.modules:  # keeps a running progress bar in one piece
        from tqdm import tqdm

        # tqdm's own lock is shared with forked processes: one that is killed while it writes would
        # keep all others waiting for ever.
        tqdm.set_lock(_writing)
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def get_logger(name: str) -> logging.Logger:
    """The logger `name`, under ``lavislite``; its messages show once per job, not once per rank."""
    root = logging.getLogger(_ROOT)
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        root.addHandler(_Console())
        root.setLevel(os.environ.get("LAVISLITE_LOG", "INFO").upper())
    return logging.getLogger(name if name.split(".")[0] == _ROOT else f"{_ROOT}.{name}")


def warn_once(logger: logging.Logger, key: Hashable, message: str) -> None:
    """Warn unless this process has warned about `key` before."""
    if key not in _warned:
        _warned.add(key)
        logger.warning(message)
