"""Checkpoints are whole or absent, and old ones go when newer ones are safe."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_parts import Data, Model, make_runner

from lavislite.common.errors import CheckpointError, TrainingError
from lavislite.common.tensors import load_tensors
from lavislite.runners import checkpoint
from lavislite.runners.checkpoint import load_checkpoint


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_frozen_weights_are_not_saved(tmp_path: Path) -> None:
    make_runner(tmp_path).train()
    saved = load_tensors(tmp_path / "checkpoints/last/model.safetensors")
    assert set(saved) == {"head.weight", "head.bias"}


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    make_runner(tmp_path, save_every_steps=2, keep_last=2).train()
    assert names(tmp_path) == ["last", "step_10", "step_12"]


@pytest.mark.parametrize("failing", ["weights", "trainer"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    runner = make_runner(tmp_path, save_every_steps=3, keep_last=1)
    real = {"weights": checkpoint.save_weights, "trainer": checkpoint.torch.save}[failing]
    calls = 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        real(*args)
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "weights":
        monkeypatch.setattr(checkpoint, "save_weights", full)
    else:
        monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(TrainingError, match=r"step_6: .*No space left.*run\.resume=auto"):
        runner.train()
    monkeypatch.undo()
    assert names(tmp_path) == ["last", "step_3"]
    assert load_checkpoint((tmp_path / "checkpoints/last").resolve(), Model(), "Model").step == 3


def test_a_file_is_no_checkpoint_and_says_what_to_use(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match=r"no meta\.json.*model\.pretrained"):
        load_checkpoint(tmp_path / "x", Model(), "Model")


def test_weights_that_do_not_fit_name_their_checkpoint(tmp_path: Path) -> None:
    make_runner(tmp_path, train=Data(8), max_epoch=1).train()
    model = Model()
    model.more = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.* lacks 'more\.weight'"):
        load_checkpoint((tmp_path / "checkpoints/last").resolve(), model, "Model")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    make_runner(tmp_path, train=Data(8), max_epoch=1).train()
    with pytest.raises(CheckpointError, match="'Model', this run has 'Other'"):
        load_checkpoint((tmp_path / "checkpoints/last").resolve(), Model(), "Other")
