"""Which folder a run writes to. One process decides, see `on_main`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lavislite.common.config import Config
from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text, read_json
from lavislite.common.launch import Launch
from lavislite.common.schema import RunConfig

CONFIG = "config.yaml"
LATEST = "latest"
LAUNCH = "launch.json"
RESULTS = "results.json"


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
    from lavislite.runners.find import run_dir_of

    if run.resume is None:
        return None
    found = run_dir_of(run.resume, Path(run.output_dir) / stem)
    return None if found is None else found.resolve()  # not `latest`, which will move


@dataclass(frozen=True)
class LaunchRecord:
    """What tells a run folder's own job from others: ``launch.json``, for when it starts again.

    The file stays as the first start has written it.
    """

    launch: Launch
    config_sha256: str

    @classmethod
    def of(cls, cfg: Config, environ: Mapping[str, str]) -> LaunchRecord:
        return cls(Launch.of(environ), hashlib.sha256(cfg.to_yaml().encode()).hexdigest())

    def write(self, run_dir: Path) -> None:
        """Remember in `run_dir`, for as long as the launcher has a name for the job."""
        if self.launch.names:
            content = {"names": self.launch.names, "config_sha256": self.config_sha256}
            atomic_write_text(run_dir / LAUNCH, json.dumps(content, indent=2))

    def fits(self, file: Path) -> bool:
        """An earlier start of this job with this configuration has written `file`."""
        known = read_json(file)
        same = set(known["names"]) & set(self.launch.before)
        return bool(same) and known["config_sha256"] == self.config_sha256

    def resume(self, run_dir: Path, asked: str | None) -> str | None:
        """What ``run.resume`` must be in `run_dir`: as `asked` until there is a newer checkpoint.

        (What was asked for may itself be a checkpoint in that folder, and not the newest.)
        """
        began = (run_dir / LAUNCH).stat().st_mtime
        saved = (run_dir / "checkpoints").glob("step_*")
        return "auto" if any(folder.stat().st_mtime >= began for folder in saved) else asked


def find_begun(run: RunConfig, stem: str, record: LaunchRecord) -> Path | None:
    """The folder in which an earlier start of the same job has begun this run, or None.

    One that is finished counts only when the launcher says that it starts the job again: something
    went wrong in the very end, and the run must not be trained a second time.
    """
    files = list((Path(run.output_dir) / stem).glob(f"*/{LAUNCH}")) if record.launch.before else []
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        if not file.parent.is_symlink() and record.fits(file):
            finished = _newer(file.with_name(RESULTS), file)
            return None if finished and not record.launch.restarted else file.parent.resolve()
    return None


def _newer(file: Path, than: Path) -> bool:
    return file.exists() and file.stat().st_mtime >= than.stat().st_mtime


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
