"""Stage 2 on two processes is stage 2 on one: the loss is per token of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_two_halves_of_a_batch_train_write_and_answer_like_the_whole(
    two_processes: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    import jobs

    one = jobs.stage2(tmp_path, kinds=(kind,))[kind]
    assert len({row["caption"] for row in one["captions"]}) > 1  # they depend on the picture
    for process in two_processes:
        found = process["stage2"][kind]
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-5)
        for name, weight in one["weights"].items():
            assert torch.allclose(found["weights"][name], weight, rtol=1e-3, atol=2e-5), name
        for result in ("captions", "caption_metrics", "answers", "answer_metrics"):
            assert found[result] == one[result]
    first, second = (process["stage2"][kind]["weights"] for process in two_processes)
    assert all(torch.equal(first[name], second[name]) for name in first)
