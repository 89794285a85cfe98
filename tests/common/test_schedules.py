"""Learning rates against values recorded from the original, and where we differ on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavislite.common import catalog

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data/optim/lavis_lr_schedules.json").read_text()
)
NAMES = {"constant_lr": "constant"}


def ours(record: dict[str, Any], step: int) -> float:
    args = record["args"]
    warmup_steps = args.get("warmup_steps", 0)
    schedule = catalog.lr_schedules.get(NAMES.get(record["schedule"], record["schedule"]))
    return schedule(
        step,
        total_steps=record["max_epoch"] * record["iters_per_epoch"],
        steps_per_epoch=record["iters_per_epoch"],
        init_lr=args["init_lr"],
        min_lr=args.get("min_lr", 0.0),
        warmup_lr=args.get("warmup_start_lr", 0.0),
        warmup_steps=warmup_steps,
        lr_decay_rate=args.get("decay_rate", 0.9),
    )


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["schedule"])
def test_epochs_begin_with_the_originals_value_once_warm_up_is_over(record: dict) -> None:
    per_epoch = record["iters_per_epoch"]
    warmup = record["args"].get("warmup_steps", 0)
    compared = 0
    for epoch in range(record["max_epoch"]):
        step = epoch * per_epoch
        if step >= warmup:
            assert ours(record, step) == pytest.approx(record["lr"][step], rel=1e-9)
            compared += 1
    assert compared >= 1


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["schedule"])
def test_warm_up_begins_like_the_original(record: dict) -> None:
    for step in range(min(record["args"].get("warmup_steps", 0), 4)):
        assert ours(record, step) == pytest.approx(record["lr"][step], rel=1e-9)


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["schedule"])
def test_warm_up_never_jumps(record: dict) -> None:
    # The original jumps at epoch 1 when the warm-up is longer than epoch 0.
    args, warmup = record["args"], record["args"].get("warmup_steps", 0)
    ramp = (args["init_lr"] - args.get("warmup_start_lr", 0.0)) / max(warmup, 1)
    for step in range(warmup):
        assert ours(record, step + 1) - ours(record, step) <= ramp * (1 + 1e-9)


def test_cosine_moves_within_an_epoch() -> None:
    # The original trains a single epoch at a constant rate.
    record = {
        "schedule": "linear_warmup_cosine_lr",
        "max_epoch": 1,
        "iters_per_epoch": 100,
        "args": {"init_lr": 1.0, "min_lr": 0.1},
    }
    rates = [ours(record, step) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_step_schedule_decays_per_epoch_down_to_min_lr() -> None:
    record = {
        "schedule": "linear_warmup_step_lr",
        "max_epoch": 9,
        "iters_per_epoch": 3,
        "args": {"init_lr": 1.0, "min_lr": 0.3, "decay_rate": 0.5},
    }
    assert [ours(record, step) for step in (0, 2, 3, 5, 6, 20)] == [1, 1, 0.5, 0.5, 0.3, 0.3]
