"""Which splits are evaluated, and which score is best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runner_parts import Data, Model, Task, run_config

from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.runners.evaluation import Monitor, evaluate_datasets, select_splits
from lavislite.runners.rehearsal import describe

METRICS = {"a/val/r_mean": 20.0, "b/val/r_mean": 40.0, "a/val/loss": 3.0, "a/val/loss_itc": 1.0}


def monitor(**options: str) -> Monitor:
    return Monitor(Task(), run_config(**options), [])


def test_only_declared_splits_are_evaluated_and_a_dataset_may_lack_one() -> None:
    a, b = Data(name="a", split="val"), Data(name="b", split="minival")
    datasets = {"a": {"val": a, "test": Data()}, "b": {"minival": b}}
    assert select_splits(datasets, ["val", "minival"]) == [a, b]
    assert select_splits(datasets, []) == []
    with pytest.raises(ConfigError, match=r"'vla'.*Did you mean 'val'"):
        select_splits(datasets, ["vla"])


def test_a_metric_is_found_by_its_last_parts() -> None:
    assert monitor(monitor="a/val/r_mean").score(METRICS) == 20
    assert monitor(monitor="loss").score(METRICS) == 3
    assert monitor(monitor="val/r_mean").score(METRICS) == 30


def test_an_unknown_metric_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'r_maen'.*Did you mean 'r_mean'.*a/val/loss_itc"):
        monitor(monitor="r_maen").score(METRICS)


def test_direction_follows_the_metric_or_the_option() -> None:
    rising, falling = monitor(monitor="r_mean"), monitor(monitor="loss")
    assert rising.better(2.0, 1.0)
    assert not rising.better(1.0, 2.0)
    assert falling.better(1.0, 2.0)
    assert monitor(monitor="r_mean", monitor_mode="min").better(1.0, 2.0)
    assert rising.better(-5.0, None)
    assert not rising.better(float("nan"), None)
    with pytest.raises(ConfigError, match="monitor_mode"):
        monitor(monitor_mode="maximum")


def test_further_files_of_a_result_lie_beside_its_rows(tmp_path: Path) -> None:
    class Writing(Task):
        def evaluate(self, *_: Any) -> EvalResult:
            return EvalResult({"score": 1.0}, [{"index": 0}], {"server": [{"id": 1, "text": "a"}]})

    part = Data(name="a", split="val")
    metrics = evaluate_datasets(
        *(Writing(), Model(), [part], EvalContext()),
        lambda p: tmp_path / f"{p.name}_{p.split}.jsonl",
    )
    assert metrics == {"a/val/score": 1.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_val.jsonl", "a_val_server.json"]
    assert json.loads((tmp_path / "a_val_server.json").read_text()) == [{"id": 1, "text": "a"}]


def test_a_dry_run_shows_the_tasks_table_or_all_metrics() -> None:
    found: dict[str, Any] = {"train": {"loss": 2.0}, "metrics": {"a/val/x": 1.0, "a/val/y": 2.0}}
    found |= {"parameters": {"head": (3, 0)}, "peak_memory_gb": {"cpu": 0.5}}
    plain = describe(found, [])
    assert "First step: loss 2" in plain
    assert "First evaluation batch: a/val/x 1  a/val/y 2" in plain
    shown = describe(found, [["a/val", "x"], ["all", "1.0"]])
    assert "First evaluation batch:\na/val    x\nall    1.0\n" in shown
    assert "a/val/y" not in shown
