"""What a run tells of itself: facts at its start, how to go on, results and report at its end."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lavislite.common import distributed
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger
from lavislite.runners.evaluation import make_context, read_accuracies
from lavislite.runners.log import table, versions
from lavislite.runners.memory import count_parameters

if TYPE_CHECKING:
    from lavislite.runners.runner import Runner

logger = get_logger(__name__)

EXAMPLES = 8  # pictures in the report


def begin(runner: Runner) -> None:
    """What this run is: on the terminal, in the log, in ``run.json`` and ``config.yaml``."""
    trainable, frozen = count_parameters(runner.model)
    facts = {
        "model": runner.arch,
        "device": str(runner.device),
        "precision": runner.precision,
        "processes": distributed.world_size(),
        "total_steps": runner.plan.total_steps,
        "steps_per_epoch": runner.plan.steps_per_epoch,
        "trainable_parameters": trainable,
        "frozen_parameters": frozen,
    }
    logger.info("%s\nFiles: %s", "  ".join(f"{k} {v}" for k, v in facts.items()), runner.run_dir)
    facts |= {"versions": versions(), "config": runner.config_yaml}
    runner.log.write("start", runner.state.step, facts)
    if distributed.is_main():
        atomic_write_text(runner.run_dir / "config.yaml", runner.config_yaml)
        atomic_write_text(runner.run_dir / "run.json", json.dumps(facts, indent=2))


def say_finished(runner: Runner, path: Path | None) -> None:
    """There is nothing to train after the checkpoint `path`."""
    logger.info(
        "%s is finished: %d of %d steps are done. For more, raise run.max_epoch or run.max_steps.",
        path,
        runner.state.step,
        runner.plan.total_steps,
    )


def say_how_to_go_on(runner: Runner, path: Path) -> None:
    """The command that continues from the checkpoint `path`."""
    logger.info(
        "Stopped after step %d of %d. Resume with:\n"
        "  %s train.py --cfg-path %s --options run.resume=%s",
        runner.state.step,
        runner.plan.total_steps,
        distributed.launcher(os.environ),
        runner.run_dir / "config.yaml",
        path,
    )


def conclude(runner: Runner, metrics: dict[str, float]) -> None:
    """Results file, report, and a short table on the terminal. All processes call it."""
    minutes = (time.perf_counter() - runner.began) / 60
    runner.log.write("end", runner.state.step, {**metrics, "minutes": minutes})
    with runner.whole_model():
        if distributed.is_main():
            facts = {"metrics": metrics, **asdict(runner.state), "minutes": minutes}
            text = json.dumps({**facts, "versions": versions()}, indent=2)
            atomic_write_text(runner.run_dir / "results.json", text)
            summary = runner.task.summary(metrics)
            if runner.cfg.report:
                _write_report(runner, metrics, summary)
            shown = table(summary) or "\n".join(f"{k}  {v:.4g}" for k, v in metrics.items())
            shown = shown or "no metrics"
            logger.info("\nResult\n%s\n%.1f minutes. Files: %s", shown, minutes, runner.run_dir)
        distributed.barrier()


def _write_report(runner: Runner, metrics: dict[str, float], summary: list[list[str]]) -> None:
    from lavislite.runners.report import write_report

    ctx = make_context(runner.cfg, runner.device, runner.autocast)
    # A gallery has more to show than a loss: what was found, and what was right.
    parts = sorted(runner.tested or runner.valid, key=lambda part: part.evaluation == "retrieval")
    state = runner.state
    step = state.step if state.best_step is None else state.best_step
    try:
        write_report(
            runner.run_dir / "report",
            runner.log.path,
            metrics,
            runner.task.examples(runner.model, parts[-1], ctx, EXAMPLES) if parts else [],
            title=runner.run_dir.name,
            config_yaml=runner.config_yaml,
            summary=summary,
            types=read_accuracies(runner.evaluated_parts(), runner.rows_path(step)),
        )
    except ImportError as error:  # the numbers are all there; only the pictures are missing
        logger.warning("No report: %s", error)
