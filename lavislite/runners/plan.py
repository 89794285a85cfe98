"""Counting: finished optimizer steps, and what follows from their number."""

from __future__ import annotations

from dataclasses import dataclass, field

from lavislite.common.schema import RunConfig


@dataclass
class TrainState:
    """How far a run has come: `step` counts finished steps; what `Plan` says follows from it."""

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)  # before any: the loss


@dataclass(frozen=True)
class Plan:
    """How a run's batches make up its steps, epochs and whole length.

    A step takes `accumulate` batches; what is left of an epoch makes a smaller last step.
    """

    batches_per_epoch: int
    accumulate: int
    max_epoch: int
    max_steps: int | None

    @classmethod
    def of(cls, cfg: RunConfig, batches_per_epoch: int) -> Plan:
        return cls(batches_per_epoch, cfg.accum_grad_iters, cfg.max_epoch, cfg.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.batches_per_epoch // self.accumulate)

    @property
    def total_steps(self) -> int:
        if self.max_steps is not None:
            return self.max_steps
        return self.max_epoch * self.steps_per_epoch

    def first_batch(self, step: int) -> int:
        """Number of the first batch of step `step` (from 0), counted through the run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch * self.batches_per_epoch + position * self.accumulate

    def batches_in(self, step: int) -> int:
        """How many micro-batches step `step` has."""
        return self.first_batch(step + 1) - self.first_batch(step)

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def due(self, step: int, every_steps: int | None, every_epochs: int = 0) -> bool:
        """After `step` steps: at the end; else every so many steps or, if None, epochs."""
        every = every_epochs * self.steps_per_epoch if every_steps is None else every_steps
        return step == self.total_steps or (every > 0 and step % every == 0)
