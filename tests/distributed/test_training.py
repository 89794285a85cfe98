"""Two processes train as one: same steps, same files, same errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance), name


def test_two_halves_of_a_batch_train_like_the_whole(
    two_processes: list[dict[str, Any]], tmp_path: Path
) -> None:
    import jobs

    one = jobs.training(tmp_path)
    for process in two_processes:
        found = process["training"]
        assert_close(found["weights"], one["weights"], 1e-5)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    first, second = (process["training"]["weights"] for process in two_processes)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resume_restores_the_random_states_of_every_process(
    two_processes: list[dict[str, Any]],
) -> None:
    for process in two_processes:
        found = process["resumption"]
        assert all(torch.equal(found["whole"][n], found["resumed"][n]) for n in found["whole"])


def test_a_bad_record_of_one_process_stops_all_and_is_named(
    two_processes: list[dict[str, Any]],
) -> None:
    for process in two_processes:
        found = process["not_a_number"]
        assert "step 1 " in found["error"]
        assert found["bad"] in found["error"]


def test_a_full_disk_stops_all(two_processes: list[dict[str, Any]]) -> None:
    for process in two_processes:
        assert "No space left on device" in process["full_disk"]["error"]


def test_batch_norms_have_the_same_statistics_everywhere(
    two_processes: list[dict[str, Any]],
) -> None:
    first, second = (process["statistics"] for process in two_processes)
    assert first["mean"].abs().max() > 0.01
    assert torch.equal(first["mean"], second["mean"])
    assert torch.equal(first["var"], second["var"])
    assert not first["warnings"]
