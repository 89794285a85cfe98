"""Which splits are evaluated, and which score is best."""

from __future__ import annotations

import pytest
from runner_parts import Data, Task, run_config

from lavislite.common.errors import ConfigError
from lavislite.runners.evaluation import Monitor, select_splits

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
