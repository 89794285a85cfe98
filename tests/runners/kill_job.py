"""Runs in processes of their own that die by SIGKILL: on request in the midst of something.

The processes are forked from a server that has imported everything, which makes them cheap.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
PLACES = [str(HERE.parents[1]), str(HERE)]
sys.path[:0] = PLACES

import numpy as np  # noqa: E402
import torch  # noqa: E402
from runner_parts import Model, Task, make_runner  # noqa: E402

from lavislite.common import distributed, io  # noqa: E402
from lavislite.common.errors import TrainingError  # noqa: E402
from lavislite.runners import checkpoint  # noqa: E402

TIMES = {"seconds", "samples_per_second", "data_wait", "memory_gb", "eval_seconds", "minutes"}
TIMES |= {"tflops", "mfu"}
# What writing a checkpoint goes through, in order: the module, and the function in it.
STAGES: dict[str, tuple[Any, str]] = {
    "weights": (checkpoint, "save_weights"),
    "trainer": (checkpoint.torch, "save"),
    "fingerprints": (checkpoint, "fingerprints"),
    "in place": (io, "_replace_folder"),
    "links": (checkpoint, "_link"),
    "removal": (checkpoint, "remove_folder"),
}
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["kill_server"])


class Drawing(Model):
    """Draws from every source of random numbers: its own process's, and that of all processes."""

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = super().forward(samples)
        together = torch.rand((), generator=distributed.shared_generator())
        alone = random.random() + np.random.rand()
        return losses | {"loss": losses["loss"] * (together + alone)}


def begin(
    run_dir: Path,
    kill: tuple[str, int] | None = None,
    environ: dict[str, str] | None = None,
    **options: Any,
) -> BaseProcess:
    """Start a run that goes on from what is in `run_dir`.

    Args:
        kill: the process dies in the midst of the n-th time that it does this: one of `STAGES`, or
            "step"; or "slow": never, but everything takes time enough to be killed from outside; or
            "full": it lives, but the disk is full from that time on.
        environ: further variables, such as torchrun's.
    """
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(PLACES)):
        forkserver.ensure_running()
    process = _processes.Process(target=_train, args=(run_dir, kill, environ or {}, options))
    process.start()
    return process


def run(run_dir: Path, kill: tuple[str, int] | None = None, **options: Any) -> int:
    """The exit code of `begin`, awaited; -9 for a killed process."""
    process = begin(run_dir, kill, **options)
    process.join(60)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def run_together(run_dir: Path, kill: tuple[str, int] | None = None, **options: Any) -> list[int]:
    """The exit codes of two processes that train together; the second never dies by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environs = [{**launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    first = begin(run_dir, kill, environs[0], **options)
    second = begin(run_dir, None, environs[1], **options)
    first.join(60)
    if first.exitcode == -signal.SIGKILL:
        second.kill()
    second.join(60)
    assert first.exitcode is not None, "hangs"
    assert second.exitcode is not None, "hangs"
    return [first.exitcode, second.exitcode]


def log(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, but for the starts, and without what depends on the clock."""
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["event"] != "start"]
    return [{key: row[key] for key in row.keys() - TIMES} for row in rows]


def _train(
    run_dir: Path,
    kill: tuple[str, int] | None,
    environ: dict[str, str],
    options: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in an ordinary process
    os.environ.update(environ)
    distributed.init_distributed(timeout_minutes=1, device="cpu")
    stage, number = kill or ("", 0)
    if stage in STAGES:
        module, name = STAGES[stage]
        setattr(module, name, _deadly(getattr(module, name), number))
    elif stage == "slow":
        checkpoint.save_weights = _slow(checkpoint.save_weights, 0.03)
        Task.train_step = _slow(Task.train_step, 0.01)
    elif stage == "step":
        Task.train_step = _deadly(Task.train_step, number)
    elif stage == "full":
        checkpoint.save_weights = _failing(checkpoint.save_weights, number)
    model = Model(dropout=0.0) if options.pop("plain", False) else Drawing()
    runner = make_runner(run_dir, model=model, **{"resume": "auto", **options})
    try:
        runner.train()
    except TrainingError as error:
        (run_dir / f"error{distributed.rank()}").write_text(f"step {runner.state.step}: {error}")
    distributed.shutdown()


def _deadly(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """`function`, but its call number `number` does half of it and is the last."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return function(*args, **kwargs)
        if function in (torch.save, REAL_SAVE_WEIGHTS):
            function(*args)
            with Path(args[1]).open("r+b") as file:
                file.truncate(Path(args[1]).stat().st_size // 2)
        elif function is REAL_REPLACE:
            _, target, aside = args
            if target.exists():
                target.rename(aside)
        elif function is REAL_REMOVE:
            aside = io._beside(args[0]) / args[0].name
            args[0].rename(aside)
            (aside / "trainer.pt").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return wrapped


def _failing(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError("No space left on device")
        return function(*args)

    return wrapped


def _slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        time.sleep(seconds)
        result = function(*args)
        time.sleep(seconds)
        return result

    return wrapped


REAL_SAVE_WEIGHTS, REAL_REPLACE = checkpoint.save_weights, io._replace_folder
REAL_REMOVE = checkpoint.remove_folder
