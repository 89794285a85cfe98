"""Checkpoints of a run: whole or not there at all.

``run_dir/checkpoints/step_<n>/`` holds

- ``model.safetensors``: trainable weights and trained buffers; frozen parts are named in meta.json,
- ``trainer.pt``: optimizer, gradient scaler, best score, and of every process its random states and
  running means,
- ``config.yaml``: the resolved configuration,
- ``meta.json``: step, architecture, identity of the frozen parts, number of processes, and size and
  SHA-256 of the other files.

A folder is written under another name and renamed when complete. ``last`` and ``checkpoint_best``
are relative links to the newest and the best.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.common.errors import CheckpointError, UserError
from lavislite.common.io import atomic_write, atomic_write_text, read_json, remove_folder
from lavislite.common.tensors import load_tensors
from lavislite.runners.integrity import META, damage, fingerprints
from lavislite.runners.writing import write_on_main

FORMAT = 2
LAST, BEST = "last", "checkpoint_best"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as copies in host memory: training goes on meanwhile.

    On the main process; elsewhere tensors and `trainer` may be empty.
    """

    step: int
    weights: dict[str, Tensor]
    trainer: dict[str, Any]
    meta: dict[str, Any]
    config_yaml: str
    best_step: int | None


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

    def newest_first(self) -> list[Path]:
        """All there are, in the order of their writing; first those of which that is unknown.

        Not by step: a run that resumed further back is writing small numbers again.
        """
        found = list(self.folder.resolve().glob("step_*"))
        return sorted(found, key=_age, reverse=True)

    def write(self, snapshot: Snapshot) -> None:
        """Write ``step_<n>``, move the pointers, then remove what is no longer kept.

        Raises:
            OSError or the like: the disk is full or not writable; earlier ones are untouched.
        """
        path = self.at(snapshot.step)
        place = {"format": FORMAT, "step": snapshot.step, "serial": self._next_serial()}
        meta = place | snapshot.meta
        log = self.folder.parent / "log.jsonl"
        if log.exists():
            _flush(log)  # the checkpoint counts on its rows
        atomic_write(path, lambda part: _write_files(part, snapshot, meta))
        _flush(self.folder)
        self._point(path, snapshot.best_step)
        self._forget(path)

    def _point(self, path: Path, best_step: int | None) -> None:
        _link(self.folder / LAST, path.name)
        if best_step is not None and self.at(best_step).exists():
            _link(self.folder / BEST, self.at(best_step).name)
        else:  # what a run has found that resumed further back is not this run's best
            (self.folder / BEST).unlink(missing_ok=True)

    def _forget(self, newest: Path) -> None:
        """Remove all but the last few and the best; what is damaged counts as oldest."""
        known = [folder for folder in self.newest_first() if _serial(folder) is not None]
        keep = {folder.name for folder in [newest, *known[: self._keep_last]]}
        best = self.pointed(BEST)
        keep |= {best.name} if best is not None else set()
        for folder in self.newest_first():
            if folder.name not in keep:
                remove_folder(folder)

    def adopt(self, path: Path) -> None:
        """Copy a checkpoint of another run folder into this one, unless it is there."""
        target = self.folder / path.name
        if path.is_dir() and not target.exists():
            write_on_main(
                lambda: atomic_write(target, lambda part: _copy_folder(path, part)),
                f"checkpoint {target}",
            )

    def go_on_from(self, path: Path, best_step: int | None) -> None:
        """Let `path`, one of these, count as the newest: what was written after it is abandoned.

        When it is the newest, what a kill has kept `write` from doing after it is done now.

        Raises:
            TrainingError: the folder is not writable.
        """

        def write() -> None:
            newest = self.newest_first()[0] == path
            if not newest:
                meta = {**read_meta(path), "serial": self._next_serial()}
                atomic_write_text(path / META, json.dumps(meta, indent=2))
            self._point(path, best_step)
            if newest:
                self._forget(path)

        write_on_main(write, f"{META} in {path}")

    def _next_serial(self) -> int:
        return max((_serial(folder) or 0 for folder in self.newest_first()), default=0) + 1


def _write_files(folder: Path, snapshot: Snapshot, meta: dict[str, Any]) -> None:
    folder.mkdir()
    save_weights(snapshot.weights, folder / "model.safetensors")
    torch.save(snapshot.trainer, folder / "trainer.pt")
    (folder / "config.yaml").write_text(snapshot.config_yaml, encoding="utf-8")
    text = json.dumps({**meta, "files": fingerprints(folder)}, indent=2)
    (folder / META).write_text(text, encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _flush(path)


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Named CPU tensors as safetensors, which wants compact tensors of their own."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))


def load_weights(path: Path, model: Any, arch: str) -> dict[str, Any]:
    """Load ``model.safetensors`` of a checkpoint folder into `model`; returns its meta data.

    Raises:
        CheckpointError: it belongs to another architecture, rests on other frozen parts, is cut
            short, or its names or shapes differ.
    """
    meta = read_meta(path)
    if meta["arch"] != arch:
        raise CheckpointError(f"{path} holds a model '{meta['arch']}', this run has '{arch}'.")
    problem = damage(path, thorough=False)
    if problem is not None:
        raise CheckpointError(f"{path} cannot be read: {problem}.")
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
    file = path / META
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


def _serial(folder: Path) -> int | None:
    """How many checkpoints its run had written when this one was; None if it cannot be read."""
    try:
        return int(read_json(folder / META).get("serial", 0))  # format 1 did not count
    except (OSError, UserError, AttributeError, TypeError, ValueError):
        return None


def _age(folder: Path) -> tuple[float, float]:
    serial = _serial(folder)
    return float("inf") if serial is None else serial, folder.stat().st_mtime


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _link(link: Path, target: str) -> None:
    part = link.with_name(f".{link.name}.new")
    part.unlink(missing_ok=True)
    part.symlink_to(target, target_is_directory=True)
    if link.is_dir() and not link.is_symlink():  # the run was copied with what its links name
        remove_folder(link)
    part.replace(link)


def _flush(path: Path) -> None:
    """What was written to a file or folder survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
