"""A job that is started again finds the run that it began."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavislite import build
from lavislite.common.config import Config, resolve
from lavislite.runners.log import RunLog

TOY = str(Path(__file__).with_name("toy_parts.py"))
Start = Callable[..., Any]


def make(out: Path, **run: Any) -> Config:
    options = {
        "task": "toy_task",
        "batch_size_train": 8,
        "max_steps": 6,
        "save_every_steps": 2,
        "num_workers": 0,
        "output_dir": str(out),
        "report": False,
        "tensorboard": False,
        "device": "cpu",
        "keep_last": 9,
    }
    layer = {"user_dir": TOY, "model": {"arch": "toy"}, "datasets": {"toy_data": {}}}
    return resolve({**layer, "run": {**options, **run}}, origin="test")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Build the run as torchrun would have it: its id, and how often it has restarted."""

    def begin(job: str | None = "job", restarts: int = 0, **run: Any) -> Any:
        for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "SLURM"))]:
            monkeypatch.delenv(name)
        if job is not None:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        return build.build_runner(make(tmp_path, **run), project="toy.yaml")

    return begin


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], None]:
    """Train until some steps are done, then end without a word."""

    def train(runner: Any, steps: int) -> None:
        def progress(_: RunLog, done: int) -> None:
            if done > steps:
                raise KeyboardInterrupt

        monkeypatch.setattr(RunLog, "progress", progress)
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        monkeypatch.undo()

    return train


def test_it_goes_on_after_its_last_checkpoint(
    start: Start, stop_after: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    stop_after(first, 3)
    again = start(restarts=1)
    assert again.run_dir == first.run_dir.resolve()
    again.train()
    assert again.state.step == 6
    assert "Continuing after step 2 of" in caplog.text


def test_without_a_checkpoint_it_starts_afresh_in_the_same_folder(start: Start) -> None:
    first = start()
    again = start(restarts=1)
    assert again.run_dir == first.run_dir.resolve()
    assert again.cfg.resume is None
    again.train()
    assert again.state.step == 6


def test_its_own_checkpoints_are_newer_than_what_it_was_told_to_resume(
    start: Start, stop_after: Any
) -> None:
    old = start(job=None, max_steps=4)
    old.train()
    resume = str(old.checkpoints.at(2))
    first = start(max_steps=8, resume=resume)
    assert first.run_dir == old.run_dir.resolve()
    assert start(max_steps=8, resume=resume, restarts=1).cfg.resume == resume  # nothing saved yet
    time.sleep(0.02)
    stop_after(first, 6)
    again = start(max_steps=8, resume=resume, restarts=1)
    assert again.cfg.resume == "auto"
    again.train()
    assert again.state.step == 8


@pytest.mark.parametrize("other", [{"job": "another"}, {"seed": 3}, {"job": None}])
def test_another_job_or_configuration_is_another_run(start: Start, other: dict[str, Any]) -> None:
    first = start()
    assert start(**other).run_dir.resolve() != first.run_dir.resolve()


def test_a_finished_run_is_trained_again_only_on_purpose(start: Start) -> None:
    first = start()
    first.train()
    restarted = start(restarts=1)  # something went wrong in the very end
    assert restarted.run_dir == first.run_dir.resolve()
    restarted.train()
    assert restarted.state.step == 6
    assert start().run_dir.resolve() != first.run_dir.resolve()  # the id is used a second time


def test_a_plain_start_remembers_nothing(start: Start) -> None:
    assert not (start(job=None).run_dir / "launch.json").exists()
