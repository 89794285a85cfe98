"""Which folder a run writes to. One process decides, see `build.on_main`."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from lavislite.common.config import Config
from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text
from lavislite.common.schema import RunConfig

CONFIG = "config.yaml"
LATEST = "latest"


def create_run_dir(cfg: Config, stem: str, train: bool = True) -> Path:
    """A new folder ``<output_dir>/<stem>/<time>`` that no other run has, with ``config.yaml``.

    Evaluation alone gets ``<time>-eval``.

    Raises:
        UserError: the folder cannot be made.
    """
    parent = Path(cfg.run.output_dir) / stem
    require_writable(parent)
    run_dir = _unique(parent, time.strftime("%Y%m%d-%H%M%S" if train else "%Y%m%d-%H%M%S-eval"))
    atomic_write_text(run_dir / CONFIG, cfg.to_yaml())
    return run_dir


def mark_latest(run_dir: Path) -> None:
    """Let ``latest`` beside `run_dir` point to it: the last run of the project that began."""
    _point(run_dir.parent / LATEST, run_dir)


def scratch_dir() -> Path:
    """A temporary folder for a run that leaves nothing behind."""
    return Path(tempfile.mkdtemp(prefix="lavislite-dry-run-"))


def require_writable(folder: Path) -> None:
    """Make `folder` and prove that files can be written there.

    Raises:
        UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))  # an empty file fits on a full disk
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another place with "
            "--options run.output_dir=FOLDER."
        ) from error


def find_resume(run: RunConfig, stem: str) -> Path | None:
    """The folder of the run that ``run.resume`` continues, or None for a new folder.

    ``auto`` is the run of the same project with the newest checkpoint, or a new one when there is
    none yet.

    Raises:
        UserError: the path does not exist, or holds no checkpoint.
    """
    from lavislite.runners.checkpoint import run_dir_of

    if run.resume is None:
        return None
    found = run_dir_of(run.resume, Path(run.output_dir) / stem)
    return None if found is None else found.resolve()  # not `latest`, which will move


def _unique(parent: Path, stamp: str) -> Path:
    number = 1
    while True:
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run began in the same second
            number += 1


def _point(link: Path, run_dir: Path) -> None:
    """Move the link in one step; where links are not to be had, a text file does."""
    part = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        part.symlink_to(run_dir.name, target_is_directory=True)
        part.replace(link)
    except OSError:
        part.unlink(missing_ok=True)
        if not link.is_dir():
            atomic_write_text(link, run_dir.name)
