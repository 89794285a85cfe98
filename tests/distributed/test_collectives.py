"""What travels between processes, forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def found(two_processes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [process["collectives"] for process in two_processes]


def test_gather_stacks_all_rows_and_gradients_are_summed_at_their_owner(found: Any) -> None:
    for process in found:
        assert process["gathered"].flatten().tolist() == [0, 1, 2, 10, 11, 12]
    # Row k is used with weight k by the first process and 2k by the second.
    assert found[0]["gather_grad"].flatten().tolist() == [0, 3, 6]
    assert found[1]["gather_grad"].flatten().tolist() == [9, 12, 15]


def test_exchange_fetches_the_wanted_rows_and_returns_their_gradients(found: Any) -> None:
    assert found[0]["rows"].flatten().tolist() == [12, 0, 0]
    assert found[1]["rows"].flatten().tolist() == [1, 11, 2]
    assert found[0]["rows_grad"].flatten().tolist() == [5, 1, 3]
    assert found[1]["rows_grad"].flatten().tolist() == [0, 2, 1]


def test_objects_and_numbers(found: Any) -> None:
    for process in found:
        assert process["sum"].item() == 3
        assert process["max"] == 6
        assert process["objects"] == [{"rank": 0}, {"rank": 1}]
        assert process["broadcast"] == "from 0"


def test_the_shared_generator_draws_the_same_everywhere(found: Any) -> None:
    assert torch.equal(found[0]["shared"], found[1]["shared"])


def test_batches_of_different_sizes_raise_instead_of_hanging(found: Any) -> None:
    assert all("different sizes ([2, 3])" in process["ragged"] for process in found)
