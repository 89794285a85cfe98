"""What of a runner goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavislite.common import distributed
from lavislite.common.errors import CheckpointError
from lavislite.common.logging import get_logger
from lavislite.common.together import on_main
from lavislite.runners.checkpoint import Snapshot, load_checkpoint
from lavislite.runners.integrity import damage

if TYPE_CHECKING:
    from lavislite.runners.runner import Runner

logger = get_logger(__name__)


def snapshot(runner: Runner) -> Snapshot:
    """Copies of everything `load` needs. All processes call it together."""
    own = {"rng": distributed.rng_state(), "step": runner.step.state_dict()}
    processes = distributed.all_gather_objects(own)
    strategy = runner.step.strategy
    return Snapshot(
        step=runner.state.step,
        weights=strategy.trainable_state(),
        trainer={
            "optimizer": strategy.optimizer_state(runner.step.optimizer),
            "scaler": runner.step.scaler.state_dict(),
            "state": asdict(runner.state),
            "rng": [process["rng"] for process in processes],
            "steps": [process["step"] for process in processes],
            "log_bytes": runner.log.size(),
        },
        meta={
            "arch": runner.arch,
            "identity": runner.model.identity(),
            "config_sha256": hashlib.sha256(runner.config_yaml.encode()).hexdigest(),
            **_batch_facts(runner),
        },
        config_yaml=runner.config_yaml,
        best_step=runner.state.best_step,
    )


def load(runner: Runner, path: Path) -> int | None:
    """Bring model, optimizer, counters and random states of `runner` to where `path` was saved.

    Returns:
        How long the run's log was then, in bytes; None when this run has another log.

    Raises:
        CheckpointError: the checkpoint does not fit the model or its optimizer.
    """
    loaded = load_checkpoint(path, runner.model, runner.arch)
    saved = loaded.trainer
    try:
        first = loaded.meta["format"] == 1
        optimizer = by_name(saved["optimizer"]) if first else saved["optimizer"]
        runner.step.strategy.load_optimizer_state(runner.step.optimizer, optimizer)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: its optimizer is not this run's: {error}. To start a new run from these "
            "weights, set model.pretrained instead of run.resume."
        ) from error
    runner.step.scaler.load_state_dict(saved["scaler"])
    for name, value in saved["state"].items():
        setattr(runner.state, name, value)
    _restore_processes(runner, loaded.meta, saved["rng"], saved.get("steps", []))
    _warn_about_config(loaded.config_yaml, runner.config_yaml)
    _find_best(runner, path)
    logger.info("Continuing after step %d of %s", runner.state.step, path)
    if path.parent != runner.checkpoints.folder.resolve():
        return None
    runner.checkpoints.go_on_from(path, runner.state.best_step)
    return saved.get("log_bytes")


def by_name(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1's optimizer state, which numbers the parameters, as format 2 has it.

    Raises:
        ValueError: its groups do not name their parameters.
    """
    names: dict[int, str] = {}
    for group in optimizer["param_groups"]:
        if "names" not in group:
            raise ValueError("its parameters have no names")
        names |= dict(zip(group["params"], group["names"], strict=True))
    return {names[number]: entries for number, entries in optimizer["state"].items()}


def _batch_facts(runner: Runner) -> dict[str, int]:
    return {
        "world_size": distributed.world_size(),
        "batch_size_train": runner.cfg.batch_size_train,
        "accum_grad_iters": runner.cfg.accum_grad_iters,
        "batches_per_epoch": runner.plan.batches_per_epoch,
    }


def _restore_processes(
    runner: Runner, meta: dict[str, Any], random_states: list[Any], steps: list[Any]
) -> None:
    """Random states and running means of each process.

    With another number of processes, each starts new random numbers, which follow from seed and
    step, and all go on from the main process's means.
    """
    rank, now = distributed.rank(), _batch_facts(runner)
    _warn_about_batches(meta, now)
    if len(random_states) == now["world_size"]:
        distributed.set_rng_state(random_states[rank])
    else:
        distributed.seed_everything(runner.cfg.seed + runner.state.step, rank=rank)
    if steps:
        runner.step.load_state_dict(steps[rank] if len(steps) == now["world_size"] else steps[0])


def _warn_about_batches(before: dict[str, Any], now: dict[str, int]) -> None:
    changed = ", ".join(
        f"{key} {before[key]} -> {now[key]}" for key in now if before[key] != now[key]
    )
    if not changed:
        return
    sizes = [m["world_size"] * m["batch_size_train"] for m in (before, now)]
    keys = ("accum_grad_iters", "batches_per_epoch")
    if sizes[0] == sizes[1] and all(before[key] == now[key] for key in keys):
        logger.warning(
            "The run continues on other processes (%s) with the same batches; dropout and rounding "
            "will differ from those of an uninterrupted run.",
            changed,
        )
    else:
        logger.warning(
            "The run continues with other batches (%s): the step count goes on, but epochs and "
            "results will not be those of an uninterrupted run.",
            changed,
        )


def _find_best(runner: Runner, path: Path) -> None:
    """The best checkpoint so far stays available, or is looked for anew."""
    state, checkpoints = runner.state, runner.checkpoints
    if state.best_step is None:
        return
    if path.parent != checkpoints.folder.resolve():  # the run goes on in another folder
        checkpoints.adopt(path.parent / f"step_{state.best_step}")
    best = checkpoints.at(state.best_step)
    problem = on_main(lambda: damage(best, thorough=False))
    if problem is not None:
        logger.warning("The best checkpoint so far, %s, is lost (%s): looking anew.", best, problem)
        state.best_score, state.best_step, state.best_metrics = None, None, {}


def _warn_about_config(before: str, now: str) -> None:
    lines = [
        line
        for line in difflib.unified_diff(before.splitlines(), now.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and "resume:" not in line
    ]
    if lines:
        shown = "\n".join(lines[:10])
        logger.warning("The configuration differs from the checkpoint's:\n%s", shown)
