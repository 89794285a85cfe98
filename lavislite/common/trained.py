"""Finds the last model that a project file trained here: ``model_type: playground`` reads it."""

from __future__ import annotations

import json
from pathlib import Path

from lavislite.common.errors import CheckpointError
from lavislite.common.io import atomic_write_text, cache_dir, read_json
from lavislite.common.registry import did_you_mean


def saved_config(checkpoint: str | Path) -> Path | None:
    """The configuration in a run or checkpoint folder, or beside the weights in the latter."""
    path = Path(checkpoint).expanduser()
    folder = path if path.is_dir() else path.parent
    ours = any((folder / mark).is_file() for mark in ("run.json", "meta.json"))
    return folder / "config.yaml" if ours and (folder / "config.yaml").is_file() else None


def pointer(project: str | Path) -> Path:
    """The file in the cache that remembers the last finished run of the project file `project`."""
    return cache_dir() / "playground" / "trained" / f"{Path(project).stem}.json"


def remember_run(project: str | Path, run_dir: Path) -> None:
    """Make `run_dir` the last finished run of `project`."""
    atomic_write_text(pointer(project), json.dumps({"run_dir": str(run_dir.resolve())}))


def last_run(project: str | Path) -> Path:
    """The folder of the last finished run of `project`.

    Raises:
        CheckpointError: there is none, or it is gone; says how to make it.
    """
    note = pointer(project)
    how = f"Train it (a few minutes on a CPU): python train.py --cfg-path {project}"
    if not note.exists():
        finished = [path.stem for path in note.parent.glob("*.json")]
        near = "" if Path(project).is_file() else did_you_mean(note.stem, finished)
        raise CheckpointError(
            f"The playground model '{note.stem}' has not been trained on this machine.{near} {how}"
        )
    run_dir = Path(read_json(note)["run_dir"])
    if not (run_dir / "config.yaml").exists():
        raise CheckpointError(f"The playground model was in {run_dir}, which is gone. {how}")
    return run_dir
