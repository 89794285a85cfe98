"""What of a runner goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavislite.common import distributed
from lavislite.common.errors import CheckpointError
from lavislite.common.logging import get_logger
from lavislite.runners.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from lavislite.runners.runner import Runner

logger = get_logger(__name__)


def save(runner: Runner) -> Path:
    """Write a checkpoint of everything `load` needs. All processes call it."""
    trainer = {
        "optimizer": runner.step.optimizer.state_dict(),
        "scaler": runner.step.scaler.state_dict(),
        "state": asdict(runner.state),
        "rng": distributed.all_gather_objects(distributed.rng_state()),
    }
    return runner.checkpoints.save(
        runner.model,
        step=runner.state.step,
        trainer=trainer,
        meta={
            "arch": runner.arch,
            "identity": runner.model.identity(),
            "config_sha256": hashlib.sha256(runner.config_yaml.encode()).hexdigest(),
            **_batch_facts(runner),
        },
        config_yaml=runner.config_yaml,
        best_step=runner.state.best_step,
    )


def load(runner: Runner, path: Path) -> None:
    """Bring model, optimizer, counters and random states of `runner` to where `path` was saved.

    Raises:
        CheckpointError: the checkpoint does not fit the model or its optimizer.
    """
    loaded = load_checkpoint(path, runner.model, runner.arch)
    try:
        runner.step.optimizer.load_state_dict(loaded.trainer["optimizer"])
    except ValueError as error:
        raise CheckpointError(
            f"{path}: its optimizer has other parameter groups than this run ({error}). To start "
            "a new run from these weights, set model.pretrained instead of run.resume."
        ) from error
    runner.step.scaler.load_state_dict(loaded.trainer["scaler"])
    for name, value in loaded.trainer["state"].items():
        setattr(runner.state, name, value)
    _restore_random_states(runner, loaded.meta, loaded.trainer["rng"])
    _warn_about_config(loaded.config_yaml, runner.config_yaml)
    if path.parent != runner.checkpoints.folder.resolve() and runner.state.best_step is not None:
        # The best one so far stays available to a run that goes on in another folder.
        runner.checkpoints.adopt(path.parent / f"step_{runner.state.best_step}")
    logger.info("Continuing after step %d of %s", runner.state.step, path)


def _batch_facts(runner: Runner) -> dict[str, int]:
    return {
        "world_size": distributed.world_size(),
        "batch_size_train": runner.cfg.batch_size_train,
        "accum_grad_iters": runner.cfg.accum_grad_iters,
        "batches_per_epoch": runner.plan.batches_per_epoch,
    }


def _restore_random_states(runner: Runner, meta: dict[str, Any], states: list[Any]) -> None:
    now = _batch_facts(runner)
    changed = [f"{key} {meta[key]} -> {now[key]}" for key in now if meta[key] != now[key]]
    if changed:
        logger.warning(
            "The run continues with other batches (%s): the step count goes on, but epochs and "
            "results will not be those of an uninterrupted run.",
            ", ".join(changed),
        )
    if len(states) == distributed.world_size():
        distributed.set_rng_state(states[distributed.rank()])


def _warn_about_config(before: str, now: str) -> None:
    lines = [
        line
        for line in difflib.unified_diff(before.splitlines(), now.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and "resume:" not in line
    ]
    if lines:
        shown = "\n".join(lines[:10])
        logger.warning("The configuration differs from the checkpoint's:\n%s", shown)
