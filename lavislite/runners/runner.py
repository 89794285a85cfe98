"""The training loop. Read `Runner.train` aloud and you have described training."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, TrainingError
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger
from lavislite.common.schema import RunConfig
from lavislite.runners import resume
from lavislite.runners.checkpoint import Checkpoints, find_checkpoint, load_weights
from lavislite.runners.evaluation import (
    Datasets,
    Monitor,
    RowsPath,
    evaluate_datasets,
    make_context,
    read_accuracies,
    select_splits,
)
from lavislite.runners.interrupt import stop_signals
from lavislite.runners.log import RunLog, Stopwatch, metrics_text, table, versions
from lavislite.runners.memory import count_parameters, used_gb
from lavislite.runners.optim import make_autocast, make_schedule, resolve_precision
from lavislite.runners.plan import Plan
from lavislite.runners.rehearsal import rehearse
from lavislite.runners.step import Batch, TrainStep

logger = get_logger(__name__)

EXAMPLES = 8  # pictures in the report


class TrainData(Protocol):
    """Training batches, numbered through the whole run: the number decides what is in a batch."""

    batches_per_epoch: int

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's share of batches `start` to `stop` - 1; closing it stops the loading."""

    def record_id(self, index: int) -> str:
        """What to call sample `index` (of ``batch["index"]``) in a message."""


@dataclass
class TrainState:
    """`step` counts finished optimizer steps; epoch, position and learning rate follow from it."""

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)


class Runner:
    """Trains and evaluates a model, and owns the run's files.

    Args:
        cfg: the options; see `RunConfig`.
        task: says what a step, an evaluation and an example are.
        datasets: name -> split -> dataset; `valid_splits` and `test_splits` are looked up here.
        run_dir: where everything goes.
        config_yaml: the resolved configuration, kept beside the checkpoints.
        train_data: what `train` trains on; evaluation does without.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        task: Any,
        model: Any,
        datasets: Datasets,
        run_dir: Path,
        config_yaml: str,
        train_data: TrainData | None = None,
    ) -> None:
        self.cfg, self.task, self.data = cfg, task, train_data
        self.run_dir, self.config_yaml = Path(run_dir), config_yaml
        self.device = distributed.resolve_device(cfg.device)
        self.precision = resolve_precision(cfg.precision, self.device)
        self.autocast = make_autocast(self.precision, self.device)
        self.model, self.arch = model.to(self.device), type(model).__name__
        self.valid = select_splits(datasets, cfg.valid_splits)
        self.tested = select_splits(datasets, cfg.test_splits)
        self.monitor = Monitor(task, cfg, [part.evaluation for part in self.valid])
        self.checkpoints = Checkpoints(self.run_dir, cfg.keep_last)
        self.state = TrainState()
        self._last_metrics: dict[str, float] = {}
        self._saved_step: int | None = None
        self._began = time.perf_counter()

    # ---- the loop

    def train(self) -> dict[str, float]:
        """Train to the end, or on from a checkpoint to the end; returns the final metrics.

        Those are the best checkpoint's validation metrics and its test metrics; afterwards the
        model holds its weights. Without validation the last checkpoint takes its place.

        Raises:
            ConfigError: an option cannot be right.
            CheckpointError: `run.resume` does not fit.
            TrainingError: the loss is not a number, or a checkpoint cannot be written.
            SystemExit: a signal asked to stop; everything is saved.
        """
        self._prepare()
        state, plan, cfg = self.state, self.plan, self.cfg
        with closing(self.log), stop_signals() as stop, closing(self.steps()) as steps:
            for micro_batches in steps:
                self.step(state.step, self.schedule(state.step), micro_batches)
                state.step += 1
                self.log.progress(state.step)
                if plan.due(state.step, cfg.log_freq):
                    self._log_training()
                if self.valid and plan.due(state.step, cfg.eval_every_steps, cfg.eval_freq):
                    self._validate()
                if plan.due(state.step, cfg.save_every_steps, cfg.save_freq):
                    self._save()
                if (signum := stop.signum()) and state.step < plan.total_steps:
                    self._leave(signum)
            return self._finish()

    def steps(self) -> Generator[list[Batch], None, None]:
        """The micro-batches of one step after the other, from `state.step` to the end."""
        plan, state = self.plan, self.state
        assert self.data is not None
        start, stop = plan.first_batch(state.step), plan.first_batch(plan.total_steps)
        with closing(self.data.batches(start, stop)) as batches:
            while state.step < plan.total_steps:
                with self.watch.waiting():
                    micro_batches = [next(batches) for _ in range(plan.batches_in(state.step))]
                yield micro_batches

    # ---- before

    def set_up(self) -> None:
        """Make what only training needs: plan, schedule, and the optimizer step."""
        if self.data is None:
            raise TrainingError("This runner was built without training data: it can evaluate.")
        self.plan = Plan.of(self.cfg, self.data.batches_per_epoch)
        distributed.seed_everything(self.cfg.seed, rank=distributed.rank())
        self.schedule = make_schedule(
            self.cfg,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
        )
        self.step = TrainStep(
            self.cfg,
            task=self.task,
            model=self.model,
            device=self.device,
            precision=self.precision,
            autocast=self.autocast,
            record_id=self.data.record_id,
        )
        self.watch = Stopwatch()
        self.model.train()

    def _prepare(self) -> None:
        self.set_up()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = find_checkpoint(self.cfg.resume, self.run_dir) if self.cfg.resume else None
        if path is not None:
            resume.load(self, path)
        self.log = RunLog(self.run_dir, self.cfg.tensorboard, self.plan.total_steps)
        self.log.forget_after(self.state.step)
        self._describe()
        if self.state.step >= self.plan.total_steps:
            logger.info(
                "%s is finished: %d of %d steps are done. For more, raise run.max_epoch or "
                "run.max_steps.",
                path,
                self.state.step,
                self.plan.total_steps,
            )
        elif self.cfg.eval_at_start and self.valid and self.state.step == 0:
            self._validate()
        elif self.monitor.asked and self.valid:  # find a misspelt name now, not after an epoch
            self.monitor.score(self.run_evaluation(self.valid, limit_batches=1))
        self.watch.restart()

    def _describe(self) -> None:
        trainable, frozen = count_parameters(self.model)
        facts = {
            "model": self.arch,
            "device": str(self.device),
            "precision": self.precision,
            "processes": distributed.world_size(),
            "total_steps": self.plan.total_steps,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "trainable_parameters": trainable,
            "frozen_parameters": frozen,
        }
        logger.info("%s\nFiles: %s", "  ".join(f"{k} {v}" for k, v in facts.items()), self.run_dir)
        facts |= {"versions": versions(), "config": self.config_yaml}
        self.log.write("start", self.state.step, facts)
        if distributed.is_main():
            atomic_write_text(self.run_dir / "config.yaml", self.config_yaml)
            atomic_write_text(self.run_dir / "run.json", json.dumps(facts, indent=2))

    # ---- in between

    def _log_training(self) -> None:
        means = self.step.read()
        row = {
            "epoch": self.plan.epoch(self.state.step),
            "lr": self.schedule(self.state.step - 1),
            **means,
            **self.watch.read(self.step.samples),
            "memory_gb": used_gb(self.device),
        }
        self._last_metrics = {"train/loss": means["loss"]}
        self.log.write("train", self.state.step, row)
        self.log.say(self.state.step, row)

    def _validate(self) -> None:
        """Evaluate, and keep a checkpoint when it is the best one so far."""
        with self.watch.paused():
            metrics = self._scored(self.valid, self.state.step)
        self._last_metrics = metrics
        score = self.monitor.score(metrics)
        if self.state.step > 0 and self.monitor.better(score, self.state.best_score):
            self.state.best_score, self.state.best_step = score, self.state.step
            self.state.best_metrics = metrics
            self._save()

    def run_evaluation(
        self, parts: list[Any], *, limit_batches: int | None = None, results: RowsPath | None = None
    ) -> dict[str, float]:
        """Metrics of `parts`; their rows go to the files that `results` names, if given."""
        ctx = make_context(self.cfg, self.device, self.autocast, limit_batches)
        return evaluate_datasets(self.task, self.model, parts, ctx, results)

    def _scored(self, parts: list[Any], step: int) -> dict[str, float]:
        """A full evaluation of the weights of `step`, with its files and its place in the log."""
        began = time.perf_counter()
        metrics = self.run_evaluation(parts, results=self._rows_path(step))
        seconds = time.perf_counter() - began
        self.log.write("eval", step, {**metrics, "eval_seconds": seconds})
        logger.info(metrics_text(step, metrics, self.task.summary(metrics), seconds))
        return metrics

    def _rows_path(self, step: int) -> RowsPath:
        return lambda part: self.run_dir / f"results/{part.name}_{part.split}_step{step}.jsonl"

    def _save(self) -> Path:
        """The checkpoint of this step, written unless it has been already."""
        if self._saved_step != self.state.step:
            resume.save(self)
            self._saved_step = self.state.step
        return self.checkpoints.at(self.state.step)

    def _leave(self, signum: int) -> None:
        path = self._save()
        logger.info(
            "Stopped after step %d of %d. Resume with:\n"
            "  %s train.py --cfg-path %s --options run.resume=%s",
            self.state.step,
            self.plan.total_steps,
            distributed.launcher(os.environ),
            self.run_dir / "config.yaml",
            path,
        )
        raise SystemExit(128 + signum)

    # ---- after

    def _finish(self) -> dict[str, float]:
        step, best = self.state.step, self.state.best_step
        if best is not None and best != step:
            load_weights(self.checkpoints.at(best), self.model, self.arch)
            step = best
        metrics = self.state.best_metrics or self._last_metrics
        if self.tested:
            metrics = {**metrics, **self._scored(self.tested, step)}
        self._conclude(metrics)
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Score the model, as built or as ``run.resume`` names it, on the splits of the run."""
        parts = self.evaluated_parts()
        if not parts:
            raise ConfigError("Nothing to evaluate: set run.test_splits or run.valid_splits.")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = find_checkpoint(self.cfg.resume, self.run_dir) if self.cfg.resume else None
        if path is not None:
            self.state.step = int(load_weights(path, self.model, self.arch)["step"])
        self.log = RunLog(self.run_dir, tensorboard=False, total_steps=self.state.step)
        if distributed.is_main():
            atomic_write_text(self.run_dir / "config.yaml", self.config_yaml)
        metrics = self._scored(parts, self.state.step)
        self._conclude(metrics)
        return metrics

    def evaluated_parts(self) -> list[Any]:
        """Datasets of `valid_splits` and `test_splits`, each once."""
        return self.valid + [part for part in self.tested if part not in self.valid]

    def _conclude(self, metrics: dict[str, float]) -> None:
        """Results file, report, and a short table on the terminal."""
        minutes = (time.perf_counter() - self._began) / 60
        self.log.write("end", self.state.step, {**metrics, "minutes": minutes})
        if distributed.is_main():
            facts = {"metrics": metrics, **asdict(self.state), "minutes": minutes}
            text = json.dumps({**facts, "versions": versions()}, indent=2)
            atomic_write_text(self.run_dir / "results.json", text)
            summary = self.task.summary(metrics)
            if self.cfg.report:
                self._write_report(metrics, summary)
            shown = table(summary) or "\n".join(f"{k}  {v:.4g}" for k, v in metrics.items())
            shown = shown or "no metrics"
            logger.info("\nResult\n%s\n%.1f minutes. Files: %s", shown, minutes, self.run_dir)
        distributed.barrier()

    def _write_report(self, metrics: dict[str, float], summary: list[list[str]]) -> None:
        from lavislite.runners.report import write_report

        ctx = make_context(self.cfg, self.device, self.autocast)
        # A gallery has more to show than a loss: what was found, and what was right.
        parts = sorted(self.tested or self.valid, key=lambda part: part.evaluation == "retrieval")
        step = self.state.step if self.state.best_step is None else self.state.best_step
        try:
            write_report(
                self.run_dir / "report",
                self.log.path,
                metrics,
                self.task.examples(self.model, parts[-1], ctx, EXAMPLES) if parts else [],
                title=self.run_dir.name,
                config_yaml=self.config_yaml,
                summary=summary,
                types=read_accuracies(self.evaluated_parts(), self._rows_path(step)),
            )
        except ImportError as error:  # the numbers are all there; only the pictures are missing
            logger.warning("No report: %s", error)

    # ---- rehearsal

    def dry_run(self) -> dict[str, Any]:
        """One step and one batch of every evaluated split; writes no checkpoint, log or result.

        Says how many parameters each part has and how much memory it took. The step changes the
        model: build a new one for the real run.
        """
        return rehearse(self)
