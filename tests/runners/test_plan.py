"""Everything follows from the number of finished steps."""

from __future__ import annotations

from lavislite.runners.plan import Plan


def test_every_batch_is_used_once_and_no_step_spans_two_epochs() -> None:
    plan = Plan(batches_per_epoch=5, accumulate=2, max_epoch=2, max_steps=None)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 6)
    assert [plan.first_batch(s) for s in range(7)] == [0, 2, 4, 5, 7, 9, 10]
    assert [plan.batches_in(s) for s in range(6)] == [2, 2, 1, 2, 2, 1]


def test_max_steps_wins_over_max_epoch() -> None:
    plan = Plan(batches_per_epoch=5, accumulate=1, max_epoch=2, max_steps=3)
    assert plan.total_steps == 3
    assert plan.epoch(3) == 0.6


def test_due_at_the_end_and_every_so_often() -> None:
    plan = Plan(batches_per_epoch=4, accumulate=1, max_epoch=3, max_steps=10)
    due = [s for s in range(1, 11) if plan.due(s, None, 1)]
    assert due == [4, 8, 10]
    assert [s for s in range(1, 11) if plan.due(s, 3, 1)] == [3, 6, 9, 10]
    assert [s for s in range(1, 11) if plan.due(s, None, 0)] == [10]
