"""The training loop. Read `Runner.train` aloud and you have described training."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, Protocol

from lavislite.common import distributed, heartbeat
from lavislite.common.errors import ConfigError, TrainingError
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger
from lavislite.common.schema import RunConfig
from lavislite.common.together import on_main
from lavislite.runners import record, resume
from lavislite.runners.checkpoint import Checkpoints, load_weights
from lavislite.runners.evaluation import (
    Datasets,
    Monitor,
    RowsPath,
    evaluate_datasets,
    make_context,
    select_splits,
)
from lavislite.runners.find import find_checkpoint, find_whole_checkpoint
from lavislite.runners.interrupt import StopRequest, stop_signals
from lavislite.runners.log import RunLog, Stopwatch, metrics_text
from lavislite.runners.memory import used_gb
from lavislite.runners.optim import make_autocast, make_schedule, resolve_precision
from lavislite.runners.plan import Plan, TrainState
from lavislite.runners.profile import profiled
from lavislite.runners.rehearsal import rehearse
from lavislite.runners.run_folder import RunLock, take_folder
from lavislite.runners.saver import Saver
from lavislite.runners.step import Batch, TrainStep

logger = get_logger(__name__)


class TrainData(Protocol):
    """Training batches, numbered through the whole run: the number decides what is in a batch."""

    batches_per_epoch: int
    bad_records: int  # so many were found unreadable so far

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's share of batches `start` to `stop` - 1; closing it stops the loading."""

    def record_id(self, index: int) -> str:
        """What to call sample `index` (of ``batch["index"]``) in a message."""


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
        # A model that will be divided goes to the device part by part.
        self.model = model if train_data and cfg.strategy == "fsdp" else model.to(self.device)
        self.arch = type(model).__name__
        self.valid = select_splits(datasets, cfg.valid_splits)
        self.tested = select_splits(datasets, cfg.test_splits)
        self.monitor = Monitor(task, cfg, [part.evaluation for part in self.valid])
        self.checkpoints = Checkpoints(self.run_dir, cfg.keep_last)
        self.saver = Saver(cfg, self.checkpoints)
        self.lock = RunLock(self.run_dir)
        self.state = TrainState()
        self.batches: Generator[Batch, None, None] | None = None
        self.whole_model: Callable[[], AbstractContextManager[None]] = nullcontext
        self.began = time.perf_counter()

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
        with closing(self.lock), closing(self.saver):
            self._prepare()
            with closing(self.log), stop_signals() as stop:
                self._loop(stop)
                return self._finish()

    def _loop(self, stop: StopRequest) -> None:
        state, plan, cfg = self.state, self.plan, self.cfg
        profiling = profiled(self.run_dir / "profile", cfg.profile, self.device)
        with closing(self.steps()) as steps, profiling as step_done:
            for micro_batches in steps:
                self.step(state.step, self.schedule(state.step), micro_batches)
                state.step += 1
                step_done()
                self.log.progress(state.step)
                if plan.due(state.step, cfg.log_freq):
                    self._log_training()
                if self.valid and plan.due(state.step, cfg.eval_every_steps, cfg.eval_freq):
                    self._validate()
                if plan.due(state.step, cfg.save_every_steps, cfg.save_freq):
                    self._save()
                told = stop.exchange(save=self.saver.due, failed=self.saver.failed)
                if told.failed:
                    self.saver.wait()  # raises, on every process
                if told.save:
                    self._save()
                if told.signum and state.step < plan.total_steps:
                    self._leave(told.signum)

    def steps(self) -> Generator[list[Batch], None, None]:
        """The micro-batches of one step after the other, from `state.step` to the end."""
        plan, state = self.plan, self.state
        with closing(self.batches or self.begin_loading()) as batches:
            while state.step < plan.total_steps:
                heartbeat.at(state.step, heartbeat.LOADING)
                with self.watch.waiting():
                    micro_batches = [next(batches) for _ in range(plan.batches_in(state.step))]
                heartbeat.at(state.step, heartbeat.COMPUTING)
                yield micro_batches

    def begin_loading(self) -> Generator[Batch, None, None]:
        """The batches from `state.step` to the end; workers load the first ones from now on."""
        assert self.data is not None
        plan, step = self.plan, self.state.step
        return self.data.batches(plan.first_batch(step), plan.first_batch(plan.total_steps))

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
        self.whole_model = self.step.whole_model
        self.watch = Stopwatch(self.device)
        self.model.train()

    def _prepare(self) -> None:
        self.set_up()
        on_main(lambda: take_folder(self.run_dir, self.lock))
        path = find_whole_checkpoint(self.cfg.resume, self.run_dir) if self.cfg.resume else None
        written = resume.load(self, path) if path is not None else 0
        self.log = RunLog(self.run_dir, self.cfg.tensorboard, self.plan.total_steps)
        self.log.forget_after(self.state.step, written)
        record.begin(self)
        if self.state.step >= self.plan.total_steps:
            record.say_finished(self, path)
            return
        self.batches = self.begin_loading()
        if self.cfg.eval_at_start and self.valid and self.state.step == 0:
            self._validate()
        elif self.monitor.asked and self.valid:  # find a misspelt name now, not after an epoch
            self.monitor.score(self.run_evaluation(self.valid, limit_batches=1))
        self.watch.read(self.step.samples)  # what came before does not count

    # ---- in between

    def _log_training(self) -> None:
        assert self.data is not None
        means, rates = self.step.read(), self.watch.read(self.step.samples)
        row = {
            "epoch": self.plan.epoch(self.state.step),
            "lr": self.schedule(self.state.step - 1),
            **means,
            **rates,
            **self.step.arithmetic.rates(rates["samples_per_second"]),
            "memory_gb": used_gb(self.device),
        }
        if bad := sum(distributed.gather_ints(self.data.bad_records)):
            row["bad_records"] = bad  # of all processes, since they started
        self.state.last_metrics = {"train/loss": means["loss"]}
        self.log.write("train", self.state.step, row)
        self.log.say(self.state.step, row)
        self.log.tell(self.step.events())

    def _validate(self) -> None:
        """Evaluate, and keep a checkpoint when it is the best one so far."""
        with self.watch.paused():
            metrics = self._scored(self.valid, self.state.step)
        self.state.last_metrics = metrics
        score = self.monitor.score(metrics)
        if self.state.step > 0 and self.monitor.better(score, self.state.best_score):
            self.state.best_score, self.state.best_step = score, self.state.step
            self.state.best_metrics = metrics
            self._save()

    def run_evaluation(
        self, parts: list[Any], *, limit_batches: int | None = None, results: RowsPath | None = None
    ) -> dict[str, float]:
        """Metrics of `parts`; their rows go to the files that `results` names, if given."""
        heartbeat.at(self.state.step, heartbeat.EVALUATING)
        ctx = make_context(self.cfg, self.device, self.autocast, limit_batches)
        with self.whole_model():
            return evaluate_datasets(self.task, self.model, parts, ctx, results)

    def _scored(self, parts: list[Any], step: int) -> dict[str, float]:
        """A full evaluation of the weights of `step`, with its files and its place in the log."""
        began = time.perf_counter()
        metrics = self.run_evaluation(parts, results=self.rows_path(step))
        seconds = time.perf_counter() - began
        self.log.write("eval", step, {**metrics, "eval_seconds": seconds})
        logger.info(metrics_text(step, metrics, self.task.summary(metrics), seconds))
        return metrics

    def rows_path(self, step: int) -> RowsPath:
        return lambda part: self.run_dir / f"results/{part.name}_{part.split}_step{step}.jsonl"

    def _save(self) -> Path:
        """The checkpoint of this step, which may still be being written."""
        heartbeat.at(self.state.step, heartbeat.SAVING)
        return self.saver.save(self)

    def _leave(self, signum: int) -> None:
        path = self._save()
        self.saver.wait()
        record.say_how_to_go_on(self, path)
        raise SystemExit(128 + signum)

    # ---- after

    def _finish(self) -> dict[str, float]:
        self.saver.wait()
        step, best = self.state.step, self.state.best_step
        if best is not None and best != step:
            load_weights(self.checkpoints.at(best), self.model, self.arch)
            step = best
        metrics = self.state.best_metrics or self.state.last_metrics
        if self.tested:
            metrics = {**metrics, **self._scored(self.tested, step)}
        record.conclude(self, metrics)
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
        record.conclude(self, metrics)
        return metrics

    def evaluated_parts(self) -> list[Any]:
        """Datasets of `valid_splits` and `test_splits`, each once."""
        return self.valid + [part for part in self.tested if part not in self.valid]

    # ---- rehearsal

    def dry_run(self) -> dict[str, Any]:
        """One step and one batch of every evaluated split; writes no checkpoint, log or result.

        Says how many parameters each part has and how much memory it took. The step changes the
        model: build a new one for the real run.
        """
        return rehearse(self)
