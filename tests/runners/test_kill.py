"""Killed at any moment, a run goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_job import STAGES, begin, log, run
from test_checkpoint import names
from test_resume import same, weights

from lavislite.common.errors import TrainingError
from lavislite.runners import run_folder
from lavislite.runners.run_folder import RunLock, take_folder

# 2 micro-batches a step and a log row every 2 steps: kills fall into the midst of both.
OPTIONS: dict[str, Any] = {
    "accum_grad_iters": 2,
    "max_epoch": 4,
    "log_freq": 2,
    "save_every_steps": 1,
    "keep_last": 2,
    "valid_splits": ["val"],
    "test_splits": ["test"],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert run(run_dir, **OPTIONS) == 0
    return run_dir


def assert_equal(run_dir: Path, undisturbed: Path) -> None:
    assert same(weights(run_dir), weights(undisturbed))
    assert log(run_dir) == log(undisturbed)
    [ours, theirs] = [
        torch.load(folder / "checkpoints/last/trainer.pt", weights_only=True)
        for folder in (run_dir, undisturbed)
    ]
    for name, entries in theirs["optimizer"].items():
        assert all(torch.equal(ours["optimizer"][name][k], v) for k, v in entries.items())
    assert ours["state"] == theirs["state"]
    assert names(run_dir) == names(undisturbed)


@pytest.mark.parametrize("stage", [*STAGES, "step"])
def test_a_kill_in_the_midst_of_anything_leaves_no_trace(
    tmp_path: Path, undisturbed: Path, stage: str
) -> None:
    assert run(tmp_path, kill=(stage, 9 if stage in ("step", "links") else 5), **OPTIONS) == -9
    assert run(tmp_path, **OPTIONS) == 0
    assert_equal(tmp_path, undisturbed)


def test_a_kill_with_worker_processes_leaves_no_trace(tmp_path: Path, undisturbed: Path) -> None:
    options = {**OPTIONS, "num_workers": 2}
    assert run(tmp_path, kill=("step", 9), **options) == -9
    assert run(tmp_path, **options) == 0
    assert_equal(tmp_path, undisturbed)


def test_a_kill_before_the_first_checkpoint_starts_anew(tmp_path: Path, undisturbed: Path) -> None:
    assert run(tmp_path, kill=("trainer", 1), **OPTIONS) == -9
    assert run(tmp_path, **OPTIONS) == 0
    assert_equal(tmp_path, undisturbed)


def test_the_last_checkpoint_is_finished_by_a_run_that_has_nothing_else_to_do(
    tmp_path: Path, undisturbed: Path
) -> None:
    # The last of 12 saves is also the best, and the kill comes before the links say so: every save
    # moves `last`, all but the first two (before there is a best) `checkpoint_best` too.
    assert run(tmp_path, kill=("links", 2 + 9 * 2 + 1), **OPTIONS) == -9
    assert (tmp_path / "checkpoints/step_12").exists()
    assert (tmp_path / "checkpoints/last").resolve().name == "step_11"
    assert run(tmp_path, **OPTIONS) == 0
    assert (tmp_path / "checkpoints/checkpoint_best").resolve().name == "step_12"
    assert_equal(tmp_path, undisturbed)


def test_a_kill_while_a_checkpoint_is_written_again_keeps_it(
    tmp_path: Path, undisturbed: Path
) -> None:
    assert run(tmp_path, kill=("step", 20), **OPTIONS) == -9
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))
    [before, newest] = [tmp_path / f"checkpoints/step_{step}" for step in steps[-2:]]
    again = {**OPTIONS, "resume": str(before)}
    assert run(tmp_path, kill=("in place", 1), **again) == -9
    assert not newest.exists()  # neither the old nor the new: it is between the two
    assert run(tmp_path, **OPTIONS) == 0
    assert_equal(tmp_path, undisturbed)


def test_kills_at_random_moments(tmp_path: Path, undisturbed: Path) -> None:
    moments, kills, begun = random.Random(3), 0, tmp_path / "run.json"
    while True:
        begun.unlink(missing_ok=True)
        process = begin(tmp_path, kill=("slow", 0), **OPTIONS)
        while not begun.exists():
            assert process.is_alive()
            time.sleep(0.01)
        process.join(0.1 + moments.random() * 0.4)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        assert kills < 50, "no progress"
    assert kills >= 2
    assert_equal(tmp_path, undisturbed)


def test_nobody_else_writes_to_the_folder_of_a_run_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_PATIENCE_SECONDS", 0.0)
    process = begin(tmp_path, kill=("slow", 0), **OPTIONS)
    assert process.pid is not None
    while not (tmp_path / "checkpoints").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    half_written = list((tmp_path / "checkpoints").glob(".step*"))
    lock = RunLock(tmp_path)
    with pytest.raises(TrainingError, match=rf"written to by process {process.pid} on "):
        take_folder(tmp_path, lock)
    assert list((tmp_path / "checkpoints").glob(".step*")) == half_written
    process.kill()
    process.join()
    take_folder(tmp_path, lock)
    assert not list((tmp_path / "checkpoints").glob(".step*"))
    lock.close()
