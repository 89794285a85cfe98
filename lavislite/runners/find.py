"""Which checkpoint ``run.resume`` means, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

from lavislite.common.errors import CheckpointError, UserError
from lavislite.common.io import require_path
from lavislite.common.logging import get_logger
from lavislite.common.together import on_main
from lavislite.runners.checkpoint import LAST, Checkpoints
from lavislite.runners.integrity import META, damage

logger = get_logger(__name__)


def find_whole_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint folder that the option ``run.resume`` means, its files checked to the end.

    ``auto`` is the newest whole one of `run_dir`, or None when there is none yet. A path may be a
    checkpoint folder, or a run folder whose newest whole checkpoint is meant. Newer ones that are
    damaged are passed over with a warning. All processes call it; the main one looks.

    Raises:
        CheckpointError: the checkpoint is damaged, or all there are; or the path holds none.
        UserError: the path does not exist.
    """
    return on_main(lambda: _find_whole(resume, run_dir))


def _find_whole(resume: str, run_dir: Path) -> Path | None:
    if resume == "auto":
        return _newest_whole(run_dir)
    path = require_path(resume, "checkpoint")
    if not (path / "checkpoints").is_dir():
        return _named(path)
    found = _newest_whole(path)
    if found is None:
        raise _no_checkpoint(path)
    return found


def _newest_whole(run_dir: Path) -> Path | None:
    problems: list[str] = []
    for folder in Checkpoints(run_dir, 1).newest_first():
        problem = damage(folder)
        if problem is None:
            if problems:
                logger.warning("%s. Continuing from %s.", ". ".join(problems), folder)
            return folder
        problems.append(f"{folder} is damaged: {problem}")
    if problems:
        raise CheckpointError(
            f"run.resume: no checkpoint in {run_dir} is whole. {'. '.join(problems)}. Start a new "
            "run without run.resume."
        )
    return None


def _named(path: Path) -> Path:
    path = path.resolve()
    siblings = Checkpoints(path.parent.parent, 1).newest_first()
    if path not in siblings and not (path / META).is_file():
        raise _no_checkpoint(path)
    problem = damage(path)
    if problem is not None:
        whole = [str(other) for other in siblings if other != path and damage(other) is None]
        instead = f"Whole ones: {', '.join(whole)}." if whole else "No other there is whole."
        raise CheckpointError(f"run.resume: {path} cannot be read: {problem}. {instead}")
    return path


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """As `find_whole_checkpoint`, but without a look into the files: the newest there is.

    Raises:
        CheckpointError: the path exists but holds no checkpoint.
        UserError: the path does not exist.
    """
    folder = run_dir if resume == "auto" else require_path(resume, "checkpoint")
    if resume != "auto" and (folder / META).is_file():
        return folder.resolve()
    found = next(iter(Checkpoints(folder, 1).newest_first()), None)
    if found is None and resume != "auto":
        raise _no_checkpoint(folder)
    return found


def run_dir_of(resume: str, output_dir: Path) -> Path | None:
    """The folder of the run that ``run.resume`` continues, for whoever chooses the run folder.

    ``auto`` is the run below `output_dir` with the newest checkpoint, or None.
    """
    if resume != "auto":
        found = find_checkpoint(resume, Path(resume))
        if found is None:
            raise UserError(f"run.resume: {resume} holds no checkpoint.")
        return found.parent.parent if found.parent.name == "checkpoints" else None
    pattern = f"checkpoints/step_*/{META}"
    metas = [*output_dir.glob(pattern), *output_dir.glob(f"*/{pattern}")]
    newest = max(metas, key=lambda meta: meta.stat().st_mtime, default=None)
    return newest.parents[2] if newest is not None else None


def _no_checkpoint(path: Path) -> CheckpointError:
    return CheckpointError(f"run.resume: {path} holds no checkpoint (no checkpoints/{LAST}).")
