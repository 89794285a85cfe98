"""Two processes leave out the same steps, and name the records of the one that had them."""

from __future__ import annotations

from typing import Any

import torch


def test_a_loss_that_is_bad_on_one_process_is_left_out_on_both(
    two_processes: list[dict[str, Any]],
) -> None:
    first, second = (process["left_out"] for process in two_processes)
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])
    for found in (first, second):
        assert [int(step) for step in found["adam_steps"]] == [2, 2]
        assert found["skips"] == [(2, second["records"])]
        assert len(found["skips"][0][1]) == 4


def test_arithmetic_is_counted_under_data_parallelism(
    two_processes: list[dict[str, Any]],
) -> None:
    tflops = two_processes[0]["left_out"]["tflops"]
    assert tflops[0] == 0  # counted in the second step
    assert tflops[1] > 0
