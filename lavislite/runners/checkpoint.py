"""Checkpoints of a run: whole or not there at all.

``run_dir/checkpoints/step_<n>/`` holds

- ``model.safetensors``: trainable weights and trained buffers; frozen parts are named in meta.json,
- ``trainer.pt``: optimizer, gradient scaler, random states of all processes, best score,
- ``meta.json``: step, architecture, identity of the frozen parts, number of processes,
- ``config.yaml``: the resolved configuration.

A folder is written under another name and renamed when complete. ``last`` and ``checkpoint_best``
are relative links to the newest and the best.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavislite.common import distributed
from lavislite.common.errors import CheckpointError, TrainingError, UserError
from lavislite.common.io import atomic_write, read_json, require_path
from lavislite.common.tensors import load_tensors

FORMAT = 1
LAST, BEST = "last", "checkpoint_best"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint without its weights, which went into the model."""

    path: Path
    meta: dict[str, Any]
    trainer: dict[str, Any]
    config_yaml: str

    @property
    def step(self) -> int:
        return int(self.meta["step"])


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, keep_last: int) -> None:
        self.folder = run_dir / "checkpoints"
        self._keep_last = max(keep_last, 1)

    def at(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def pointed(self, pointer: str) -> Path | None:
        """The checkpoint that `last` or `checkpoint_best` names, if there is one."""
        link = self.folder / pointer
        return link.resolve() if link.exists() else None

    def save(
        self,
        model: Any,
        *,
        step: int,
        trainer: dict[str, Any],
        meta: dict[str, Any],
        config_yaml: str,
        best_step: int | None,
    ) -> Path:
        """Write ``step_<n>``, move the pointers, then remove what is no longer kept.

        All processes call it; the main one writes.

        Raises:
            TrainingError: the disk is full or not writable. Earlier checkpoints are untouched.
        """
        path = self.at(step)

        def write(folder: Path) -> None:
            folder.mkdir()
            save_weights(model, folder / "model.safetensors")
            torch.save(trainer, folder / "trainer.pt")
            (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
            content = {"format": FORMAT, "step": step, **meta}
            (folder / "meta.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
            for file in folder.iterdir():
                _flush(file)

        on_main_process(lambda: atomic_write(path, write), f"checkpoint {path}")
        on_main_process(lambda: self._point(path, best_step), f"links in {self.folder}")
        return path

    def _point(self, path: Path, best_step: int | None) -> None:
        _link(self.folder / LAST, path.name)
        if best_step is not None and self.at(best_step).exists():
            _link(self.folder / BEST, self.at(best_step).name)
        else:  # what a run has found that resumed further back is not this run's best
            (self.folder / BEST).unlink(missing_ok=True)
        # By age, not by number: a run that resumed further back is writing small numbers again.
        by_age = sorted(self.folder.glob("step_*"), key=lambda folder: folder.stat().st_mtime)
        pointed = [self.pointed(name) for name in (LAST, BEST)]
        keep = {folder.name for folder in [*by_age[-self._keep_last :], *pointed] if folder}
        for old in by_age:
            if old.name not in keep:
                shutil.rmtree(old, ignore_errors=True)

    def adopt(self, path: Path) -> None:
        """Copy a checkpoint of another run folder into this one, unless it is there."""
        target = self.folder / path.name
        if path.is_dir() and not target.exists():
            on_main_process(
                lambda: atomic_write(target, lambda part: _copy_folder(path, part)),
                f"checkpoint {target}",
            )


def on_main_process(action: Callable[[], None], what: str) -> None:
    """Do file work on the main process; what goes wrong is raised on all of them.

    Raises:
        TrainingError: an OSError, or safetensors' own kind of it.
    """
    from safetensors import SafetensorError

    problem: str | None = None
    if distributed.is_main():
        try:
            action()
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save: RuntimeError
            problem = str(error) or type(error).__name__
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise TrainingError(
            f"Cannot write {what}: {problem}. Is the disk full or the folder read-only? "
            "Earlier checkpoints are complete; continue with run.resume=auto."
        )


def save_weights(model: Any, path: Path) -> None:
    """Trainable weights and buffers as safetensors, which wants compact tensors of their own."""
    from safetensors.torch import save_file

    state = model.trainable_state_dict()
    save_file({name: t.detach().cpu().clone().contiguous() for name, t in state.items()}, str(path))


def load_weights(path: Path, model: Any, arch: str) -> dict[str, Any]:
    """Load ``model.safetensors`` of a checkpoint folder into `model`; returns its meta data.

    Raises:
        CheckpointError: it belongs to another architecture, rests on other frozen parts, or its
            names or shapes differ.
    """
    meta = read_meta(path)
    if meta["arch"] != arch:
        raise CheckpointError(f"{path} holds a model '{meta['arch']}', this run has '{arch}'.")
    try:
        model.check_identity(meta["identity"])
        model.load_trainable(load_tensors(path / "model.safetensors"))
    except CheckpointError as error:
        named = str(path) in str(error)
        raise CheckpointError(str(error) if named else f"{path}: {error}") from error
    return meta


def load_checkpoint(path: Path, model: Any, arch: str) -> Loaded:
    """Load a checkpoint folder: weights into `model`, the rest is returned.

    Raises:
        CheckpointError: incomplete, damaged, or of another model.
    """
    meta = load_weights(path, model, arch)
    try:
        trainer = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
        config_yaml = (path / "config.yaml").read_text(encoding="utf-8")
    except Exception as error:  # damaged files fail in many ways; name the file
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Loaded(path, meta, trainer, config_yaml)


def read_meta(path: Path) -> dict[str, Any]:
    """``meta.json`` of a checkpoint folder.

    Raises:
        CheckpointError: `path` is no checkpoint of ours, or of a later format.
    """
    file = path / "meta.json"
    if not file.is_file():
        raise CheckpointError(
            f"{path} is not a training checkpoint: it has no meta.json. Expected a folder like "
            "<run>/checkpoints/step_1000. To start from weights alone, set model.pretrained."
        )
    meta = read_json(file)
    if meta["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {meta['format']}, this version reads up to {FORMAT}. Upgrade."
        )
    return meta


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint folder that the option ``run.resume`` means.

    ``auto`` is the last one of `run_dir`, or None when there is none yet. A path may be a
    checkpoint folder, or a run folder whose last checkpoint is meant.

    Raises:
        CheckpointError: the path exists but holds no checkpoint.
        UserError: the path does not exist.
    """
    if resume == "auto":
        return Checkpoints(run_dir, 1).pointed(LAST)
    path = require_path(resume, "checkpoint")
    if (path / "meta.json").is_file():
        return path.resolve()
    found = Checkpoints(path, 1).pointed(LAST)
    if found is None:
        raise CheckpointError(f"run.resume: {path} holds no checkpoint (no checkpoints/{LAST}).")
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
    links = [*output_dir.glob(f"checkpoints/{LAST}"), *output_dir.glob(f"*/checkpoints/{LAST}")]
    links = [link for link in links if link.exists()]
    newest = max(links, key=lambda link: link.lstat().st_mtime, default=None)
    return newest.parent.parent if newest is not None else None


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _link(link: Path, target: str) -> None:
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(target, target_is_directory=True)
    part.replace(link)


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
