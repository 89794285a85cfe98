"""What the guard notices: gradients far larger than usual, and whose records it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavislite.common.errors import TrainingError
from lavislite.runners.guard import Event, FiniteGuard, Usual, describe

CPU = torch.device("cpu")


def make_guard(*, looking: bool = True, **options: Any) -> FiniteGuard:
    guard = FiniteGuard(CPU, lambda i: f"r{i}", scaled=False, **options)
    guard.every_step = looking
    return guard


def feed(guard: FiniteGuard, norms: list[float], first: int = 0) -> list[bool]:
    """Steps with these gradient norms; step k has record k. Returns what was skipped."""
    skipped = []
    for k, norm in enumerate(norms, start=first):
        batch = {"index": torch.tensor([k])}
        skip, _ = guard.observe(k, torch.tensor(1.0), torch.tensor(norm), [batch])
        skipped.append(bool(skip))
        if guard.due():
            guard.check()
    return skipped


@pytest.mark.parametrize("looking", [True, False])
def test_a_spike_is_told_with_step_ratio_and_records(looking: bool) -> None:
    guard = make_guard(looking=looking, spike=10)
    assert not any(feed(guard, [2.0, 4.0] * 20 + [29.0, 40.0, 3.0]))
    guard.check()
    [event] = guard.events()
    assert (event.kind, event.step, event.grad_norm, event.records) == ("spike", 42, 40, ["r41"])
    assert event.usual == pytest.approx(149 / 41)
    assert "Step 42: gradient norm 40, where 3.634 is usual. Its records: r41." in describe(event)
    assert guard.events() == []


def test_the_first_steps_of_a_run_are_no_spikes_and_null_looks_for_none() -> None:
    wild = [1000.0, *[0.1] * 10, 900.0]
    for guard, norms in ((make_guard(spike=2), wild), (make_guard(spike=None), [1.0] * 50 + wild)):
        feed(guard, norms)
        assert guard.events() == []


def test_spikes_in_a_row_are_all_told_and_a_new_usual_is_learnt() -> None:
    usual = Usual()
    for _ in range(100):
        assert not usual.is_spike(1.0, 5.0)
    told = [usual.is_spike(20.0, 5.0) for _ in range(200)]
    assert all(told[:5])
    assert not any(told[100:])


def test_norms_that_are_not_finite_do_not_spoil_what_is_usual() -> None:
    guard = make_guard(spike=10, allowed=5)
    skipped = feed(guard, [1.0] * 30 + [float("inf"), float("nan")] + [11.0])
    assert [k for k, skip in enumerate(skipped) if skip] == [30, 31]
    assert [(e.kind, e.step) for e in guard.events()] == [("skip", 31), ("skip", 32), ("spike", 33)]


def test_what_is_remembered_is_bounded() -> None:
    guard = make_guard(looking=False, spike=1.1, allowed=10**6)
    feed(guard, [1.0, float("nan"), 50.0] * 400)
    assert len(guard._seen) < 300
    guard.check()
    assert guard.skipped == 400
    assert 10 < len(guard.events()) < 100


def test_who_had_the_bad_loss_names_his_records_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavislite.common import distributed

    def other(records: list[str], suspect: bool) -> Event:
        return Event("skip", 1, 0.0, 0.0, suspect, records)

    def run(others: list[Event]) -> list[str]:
        monkeypatch.setattr(
            distributed, "all_gather_objects", lambda mine: [mine, *[[e] for e in others]]
        )
        guard = make_guard(allowed=1)
        feed(guard, [float("nan")])
        return guard.events()[0].records

    assert run([other(["a"], False), other(["b"], False)]) == ["r0", "a", "b"]
    assert run([other(["a"], True), other(["b"], False)]) == ["a"]


def test_a_run_resumed_with_fewer_allowed_goes_on_until_the_next() -> None:
    before = make_guard(allowed=3)
    feed(before, [1.0, float("nan"), float("nan")])
    guard = make_guard(allowed=1)
    guard.load_state_dict(before.state_dict())
    assert feed(guard, [1.0, 1.0], first=3) == [False, False]
    with pytest.raises(TrainingError, match=r"at step 6 .*2 such steps"):
        feed(guard, [float("nan")], first=5)
