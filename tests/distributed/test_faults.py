"""Processes that die, raise or hang: the job goes on, or ends and says why."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import (
    command,
    end_all,
    free_port,
    processes,
    rows,
    start,
    torchrun,
    wait_for,
    write_project,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_project(tmp_path)
    yield tmp_path
    end_all(tmp_path)


def test_a_killed_process_is_started_again_and_goes_on(folder: Path) -> None:
    launch = torchrun("--nproc-per-node=2", "--max-restarts=1")
    job = start([*launch, *command(folder / "toy.yaml")], folder, "out", FAULT="kill:1:7")
    assert job.wait(timeout=240) == 0, (folder / "out.txt").read_text()
    said = (folder / "out.txt").read_text()
    assert "exitcode: -9" in said  # which is what the launcher has seen
    assert "This launch has been here before: continuing in " in said
    assert "Continuing after step 4" in said
    assert [row["step"] for row in rows(folder)] == list(range(1, 13))


def test_a_process_that_fails_late_is_explained_and_ends_the_other(folder: Path) -> None:
    """Started one by one, as srun does it; the process that fails holds the store."""
    line = [sys.executable, *command(folder / "toy.yaml", "run.dist_warn_seconds=2")]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        start(line, folder, f"out{r}", RANK=str(r), LOCAL_RANK="0", FAULT="late:0:3", **shared)
        for r in range(2)
    ]
    assert ranks[0].wait(timeout=180) == 1
    failed = time.monotonic()
    assert ranks[1].wait(timeout=60) == 1
    assert time.monotonic() - failed < 15
    first, second = (folder / "out0.txt").read_text(), (folder / "out1.txt").read_text()
    assert "rank 0 is at step 2 (forward and backward, fault_parts.py:" in first
    assert "ValueError: too late" in first  # with its traceback
    assert "The job ends: [rank 0] error: ValueError: too late" in second
    assert "Traceback" not in second


@pytest.mark.slow
def test_a_hang_ends_with_the_names_of_those_who_wait(folder: Path) -> None:
    options = ("run.dist_warn_seconds=5", "run.dist_timeout_minutes=1")
    launch = torchrun("--nproc-per-node=2")
    job = start([*launch, *command(folder / "toy.yaml", *options)], folder, "out", FAULT="hang:1:3")
    assert job.wait(timeout=150) == 1
    said = (folder / "out.txt").read_text()
    assert "warning: No progress for " in said
    assert "error: nothing has got on for 60 s (run.dist_timeout_minutes)" in said
    assert "rank 1 is at step 2 (forward and backward, fault_parts.py:" in said


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_its_next_start_goes_on(folder: Path) -> None:
    launch = torchrun("--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=my-job")
    line = [*launch, f"--rdzv-endpoint=localhost:{free_port()}", *command(folder / "toy.yaml")]
    job = start(line, folder, "out", PAUSE="0.5")
    ready = lambda: list(folder.glob("output/toy/2*/checkpoints/step_4"))  # noqa: E731
    wait_for(ready, 60, "a checkpoint")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: not processes(folder), 20, "the end of the processes")
    assert start(line, folder, "out").wait(timeout=90) == 0
    said = (folder / "out.txt").read_text()
    assert "error: the launcher has gone" in said
    assert "This launch has been here before" in said
    assert [row["step"] for row in rows(folder)] == list(range(1, 13))


@pytest.mark.slow
def test_processes_that_never_come_are_named(folder: Path) -> None:
    options = ("run.dist_warn_seconds=2", "run.dist_timeout_minutes=1")
    line = [sys.executable, *command(folder / "toy.yaml", *options)]
    shared = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    one = start(line, folder, "out", RANK="0", LOCAL_RANK="0", **shared)
    text = "Rank 0 waits for ranks 1-3 to start."
    wait_for(lambda: text in (folder / "out.txt").read_text(), 60, "a message")
    assert one.wait(timeout=90) == 2
    assert "has waited in vain for ranks 1-3 to start" in (folder / "out.txt").read_text()
