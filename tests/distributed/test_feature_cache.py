"""Two processes share the work of a feature cache, and read what the other has computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def test_processes_share_the_work_and_what_comes_of_it(
    two_processes: list[dict[str, Any]], tmp_path: Path
) -> None:
    import jobs

    one = jobs.feature_cache(tmp_path)
    found = [process["feature_cache"] for process in two_processes]
    assert one["computed"] == [10, 2]  # nine in batches of two; then the one that changed
    first, second = zip(*(job["computed"] for job in found), strict=True)
    assert first == (6, 6)  # five each, one of which cannot be read
    assert sorted(second) == [0, 2]
    for job in found:
        assert job["missing"] == one["missing"] == [6, 7]
        assert torch.allclose(job["features"], one["features"], atol=1e-6)
    assert sum(job["bad"] for job in found) == one["bad"] == 1


def test_a_refusal_is_everybodys(two_processes: list[dict[str, Any]]) -> None:
    for process in two_processes:
        assert "run.feature_cache writes" in process["feature_cache"]["refused"]
        assert process["feature_cache"]["marks"] == 0
