"""A dry run: does everything fit, does every part work, what does it cost."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from lavislite.common.logging import get_logger
from lavislite.runners.log import table
from lavislite.runners.memory import parameter_table, peak_memory_gb

if TYPE_CHECKING:
    from lavislite.runners.runner import Runner

logger = get_logger(__name__)


def rehearse(runner: Runner) -> dict[str, Any]:
    """See `Runner.dry_run`."""
    found: dict[str, Any] = {"train": {}, "metrics": {}}
    if runner.data is not None:
        runner.set_up()
        with closing(runner.steps()) as steps:
            runner.step(0, runner.schedule(0), next(steps))
        found["train"] = runner.step.read()
    parts = runner.evaluated_parts()
    if parts:
        found["metrics"] = runner.run_evaluation(parts, limit_batches=1)
        if runner.valid and runner.data is not None:
            runner.monitor.score(found["metrics"])
    found["parameters"] = {name: counts for name, *counts in parameter_table(runner.model)}
    found["peak_memory_gb"] = peak_memory_gb(runner.device)
    logger.info("\n%s", describe(found, runner.task.summary(found["metrics"])))
    return found


def describe(found: dict[str, Any], summary: list[list[str]]) -> str:
    """What `rehearse` found, for people; `summary` is the task's table of the metrics, or empty."""
    rows = [["part", "trainable", "frozen"]]
    rows += [[name, f"{t:,}", f"{f:,}"] for name, (t, f) in found["parameters"].items()]
    lines = [table(rows)]
    if found["train"]:
        lines.append(f"First step: {_listed(found['train'])}")
    if found["metrics"]:
        shown = f"\n{table(summary)}" if summary else f" {_listed(found['metrics'])}"
        lines.append(f"First evaluation batch:{shown}")
    peak = ", ".join(f"{place} {gb:.2f} GB" for place, gb in found["peak_memory_gb"].items())
    return "\n".join([*lines, f"Peak memory: {peak}"])


def _listed(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
