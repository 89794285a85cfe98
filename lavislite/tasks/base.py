"""What every task shares, and the one way in which evaluations run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.loading import batch_indices, evaluation_batches
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig

__all__ = [
    *("EvalContext", "EvalResult", "Row", "Task"),
    *("evaluating", "gather_rows", "padded", "split_name"),
]

Row = dict[str, Any]


class Task:
    """One training step, one evaluation, and what to show of it.

    A task that scores samples one by one writes `predict` and `score`; `evaluate` shards, gathers
    and checks. A task that scores a split as a whole overrides `evaluate`.
    """

    Config: ClassVar[type[RunConfig]] = RunConfig
    name: ClassVar[str] = ""
    evaluations: ClassVar[tuple[str, ...]] = ()  # values of `dataset.evaluation` it can score
    default_monitor: str = "loss"

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg

    def monitor_for(self, evaluations: Iterable[str]) -> str:  # noqa: ARG002
        """Metric that chooses the best checkpoint, given the kinds of the splits validated."""
        return self.default_monitor

    def higher_is_better(self, metric: str) -> bool:
        """Losses want to fall; everything else wants to rise. `metric` may be a full path."""
        return not metric.rsplit("/", 1)[-1].startswith("loss")

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        """The model's losses on one batch: ``"loss"`` is the one to minimise, others are parts."""
        return model(samples)

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """Metrics and rows of one split; the same on every process, for any number of processes.

        Raises:
            DataError: predictions are missing, for instance for unreadable images.
            ConfigError: the task cannot score this kind of dataset.
        """
        self.check(dataset)
        batches = batch_indices(len(dataset), ctx.batch_size, ctx.limit_batches)
        rows: list[Row] = []
        with evaluating(model):
            for _, samples in evaluation_batches(dataset, ctx, batches, split_name(dataset)):
                with ctx.autocast():
                    predicted = self.predict(model, samples)
                index = samples["index"].tolist()
                rows += [{"index": i, **row} for i, row in zip(index, predicted, strict=True)]
        expected = [i for batch in batches for i in batch]
        rows = gather_rows(rows, "index", expected, dataset)
        return EvalResult(self.score(rows, dataset), rows)

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        """One row of plain values per sample of the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define predict or evaluate.")

    def score(self, rows: list[Row], dataset: Any) -> dict[str, float]:
        """Metrics of the complete, ordered rows."""
        raise NotImplementedError(f"{type(self).__name__} must define score or evaluate.")

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:  # noqa: ARG002
        """Pictures and predictions for the report. Runs on one process: no collectives."""
        return []

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:  # noqa: ARG002
        """Header and rows of a final table, or nothing when the plain metrics say it all."""
        return []

    def check(self, dataset: Any) -> None:
        """Raise ConfigError when this task cannot score `dataset`, DataError when it is empty."""
        if not len(dataset):
            raise DataError(f"{split_name(dataset)} holds no records: nothing to evaluate.")
        if self.evaluations and dataset.evaluation not in self.evaluations:
            raise ConfigError(
                f"Task '{self.name}' cannot evaluate {split_name(dataset)}, which is scored by "
                f"'{dataset.evaluation}'. It can do: {', '.join(self.evaluations)}."
                f"{did_you_mean(dataset.evaluation, self.evaluations)}"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, leaving no trace: modes and random states come back.

    Training after an evaluation therefore goes on to the bit as if there had been none.
    """
    modes = {module: module.training for module in model.modules()}
    state = distributed.rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        distributed.set_rng_state(state)


def gather_rows(rows: list[Row], key: str, expected: Iterable[Hashable], dataset: Any) -> list[Row]:
    """All processes' rows in the order of `expected` (values of `key`), each once.

    Raises:
        DataError: rows are missing or unknown; says how many, and which record is the first.
    """
    found = {row[key]: row for part in distributed.all_gather_objects(rows) for row in part}
    order = list(expected)
    missing = [value for value in order if value not in found]
    surplus = found.keys() - set(order)
    if missing or surplus:
        problem = f"{len(missing)} of {len(order)} predictions are missing" if missing else ""
        if missing and key == "index":
            problem += f" (first: {dataset.record_id(missing[0])})"
        if surplus:
            problem += f"{' and ' if problem else ''}{len(surplus)} are for unknown records"
        raise DataError(
            f"Evaluation of {split_name(dataset)}: {problem}. A score over a part of the split "
            "cannot be compared with others. Are all images readable?"
        )
    return [found[value] for value in order]


def padded(table: list[list[str]]) -> list[list[str]]:
    """`table` with rows of one length."""
    width = max(map(len, table), default=0)
    return [row + [""] * (width - len(row)) for row in table]


def split_name(dataset: Any) -> str:
    """``<dataset>/<split>``, as in metric names and messages."""
    return f"{dataset.name}/{dataset.split}"
