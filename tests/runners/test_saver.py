"""Saving by step and by the clock, beside training, and what happens when it cannot be done."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_parts import Model, Task, make_runner
from test_checkpoint import names
from test_resume import same, weights

from lavislite.common.errors import TrainingError
from lavislite.runners import checkpoint, saver


class Counting(Task):
    """Counts its steps; before each of them it does `before`."""

    def __init__(self, before: Any = lambda: None) -> None:
        super().__init__()
        self.steps, self.before = 0, before

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.before()
        self.steps += 1
        return super().train_step(model, samples)


def held_up(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> None:
    """Weights are written when `until` is set, and not before."""
    real = checkpoint.save_weights

    def waiting(state: dict[str, torch.Tensor], path: Path) -> None:
        assert until.wait(10)
        real(state, path)

    monkeypatch.setattr(checkpoint, "save_weights", waiting)


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runner(tmp_path / "plain", save_async=False, save_every_steps=6).train()
    go = threading.Event()
    held_up(monkeypatch, go)
    task = Counting(lambda: go.set() if task.steps == 10 else None)
    make_runner(tmp_path / "beside", task=task, save_every_steps=6).train()
    for name in ("step_6", "step_12"):
        assert same(weights(tmp_path / "beside", name), weights(tmp_path / "plain", name))


def test_without_save_async_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, seen = threading.Event(), []
    held_up(monkeypatch, go)
    threading.Timer(0.2, go.set).start()
    task = Counting(lambda: seen.append((tmp_path / "checkpoints/step_6").exists()))
    make_runner(tmp_path, task=task, save_every_steps=6, save_async=False).train()
    assert seen == [False] * 6 + [True] * 6


def test_a_write_that_fails_stops_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def full(*_: Any) -> None:
        failed.set()
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_weights", full)
    task = Counting(lambda: failed.wait(10) and time.sleep(0.1) if task.steps == 3 else None)
    with pytest.raises(TrainingError, match=r"Cannot write checkpoint .*step_3: No space left"):
        make_runner(tmp_path, task=task, save_every_steps=3, max_steps=5).train()
    assert task.steps == 4
    assert names(tmp_path) == []


def test_an_error_of_the_run_does_not_cut_a_write_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    held_up(monkeypatch, go)

    def crash() -> None:
        if task.steps == 4:
            threading.Timer(0.2, go.set).start()
            raise ZeroDivisionError

    task = Counting(crash)
    with pytest.raises(ZeroDivisionError):
        make_runner(tmp_path, task=task, save_every_steps=3).train()
    assert names(tmp_path) == ["last", "step_3"]
    assert checkpoint.load_checkpoint(tmp_path / "checkpoints/step_3", Model(), "Model").step == 3


def test_the_clock_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(saver.time, "monotonic", lambda: now[0])

    def later() -> None:
        now[0] += 20.0

    options: dict[str, Any] = {"save_freq": 0, "save_every_minutes": 1.5, "keep_last": 9}
    make_runner(tmp_path, task=Counting(later), **options).train()
    assert names(tmp_path) == ["last", "step_10", "step_12", "step_5"]
