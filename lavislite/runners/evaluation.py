"""Evaluating splits, keeping their rows, and knowing which score is best."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lavislite.common import distributed
from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext
from lavislite.common.io import atomic_write_text, read_json
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig
from lavislite.runners.writing import write_on_main

Datasets = Mapping[str, Mapping[str, Any]]
RowsPath = Callable[[Any], Path]  # dataset -> file for its rows


def select_splits(datasets: Datasets, splits: Sequence[str]) -> list[Any]:
    """The datasets' parts called `splits`, in that order; a dataset may lack some of them.

    Raises:
        ConfigError: no dataset has one of the splits.
    """
    known = sorted({split for parts in datasets.values() for split in parts})
    for split in splits:
        if split not in known:
            raise ConfigError(
                f"No dataset has a split '{split}'.{did_you_mean(split, known)} "
                f"Known: {', '.join(known) or '(none)'}."
            )
    return [parts[split] for split in splits for parts in datasets.values() if split in parts]


def make_context(
    cfg: RunConfig, device: torch.device, autocast: Any, limit_batches: int | None = None
) -> EvalContext:
    return EvalContext(
        device=device,
        autocast=autocast,
        batch_size=cfg.batch_size_eval,
        num_workers=cfg.num_workers if limit_batches is None else 0,
        limit_batches=limit_batches,
        progress=sys.stderr.isatty(),
    )


def evaluate_datasets(
    task: Any, model: Any, parts: Iterable[Any], ctx: EvalContext, rows_path: RowsPath | None = None
) -> dict[str, float]:
    """``<dataset>/<split>/<metric>`` of each part; rows go to the files `rows_path` names.

    Further files of a result lie beside its rows: ``<rows>_<name>.json``.

    Random states and the model's mode are as before afterwards, so that training goes on to the bit
    as if there had been no evaluation.
    """
    metrics: dict[str, float] = {}
    random_states, training = distributed.rng_state(), model.training
    try:
        for part in parts:
            result = task.evaluate(model, part, ctx)
            metrics |= {f"{part.name}/{part.split}/{k}": v for k, v in result.metrics.items()}
            if rows_path is not None:
                path = rows_path(part)
                write_rows(path, result.rows)
                for name, content in result.files.items():
                    write_json(path.with_name(f"{path.stem}_{name}.json"), content)
    finally:
        model.train(training)
        distributed.set_rng_state(random_states)
    return metrics


def read_accuracies(parts: Iterable[Any], rows_path: RowsPath) -> dict[str, dict[str, Any]]:
    """``<dataset>/<split>`` -> its accuracies by type, of the evaluations that kept such a file."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        rows = rows_path(part)
        path = rows.with_name(f"{rows.stem}_accuracy.json")
        if path.is_file():
            found[f"{part.name}/{part.split}"] = read_json(path)
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line; complete or absent."""

    def write() -> None:
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    write_on_main(write, str(path))


def write_json(path: Path, content: Any) -> None:
    """One JSON document; complete or absent."""
    write_on_main(lambda: atomic_write_text(path, json.dumps(content)), str(path))


class Monitor:
    """Which metric decides what is best, and in which direction.

    The name may leave out leading parts: ``r_mean`` and ``val/r_mean`` both find
    ``coco/val/r_mean``. Where several datasets have the metric, their mean decides.
    """

    def __init__(self, task: Any, cfg: RunConfig, evaluations: Iterable[str]) -> None:
        self.asked = cfg.monitor is not None
        self.name: str = cfg.monitor if cfg.monitor else task.monitor_for(evaluations)
        modes = ("auto", "min", "max")
        if cfg.monitor_mode not in modes:
            raise ConfigError(
                f"run.monitor_mode: '{cfg.monitor_mode}' is unknown. Known: {', '.join(modes)}."
            )
        rising = task.higher_is_better(self.name)
        self.higher_is_better = rising if cfg.monitor_mode == "auto" else cfg.monitor_mode == "max"

    def score(self, metrics: Mapping[str, float]) -> float:
        """The deciding number.

        Raises:
            ConfigError: no metric has the name; those there are, are listed.
        """
        found = [v for k, v in metrics.items() if k == self.name or k.endswith(f"/{self.name}")]
        if not found:
            names = {k.rsplit("/", 1)[-1] for k in metrics}
            raise ConfigError(
                f"run.monitor: there is no metric '{self.name}'."
                f"{did_you_mean(self.name, [*names, *metrics])} "
                f"Measured: {', '.join(metrics) or '(none)'}."
            )
        return sum(found) / len(found)

    def better(self, new: float, best: float | None) -> bool:
        """`new` beats `best`. NaN beats nothing."""
        if best is None:
            return new == new
        return new > best if self.higher_is_better else new < best
