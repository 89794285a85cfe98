"""Stage 1 of BLIP-2 sees one batch, on however many processes it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("tag", ["eva_frozen", "eva_frozen_image_id"])
def test_two_halves_of_a_batch_give_the_losses_and_gradients_of_the_whole(
    two_processes: list[dict[str, Any]], tmp_path: Path, tag: str
) -> None:
    import jobs

    one = jobs.stage1(tmp_path)[tag]
    for process in two_processes:
        found = process["stage1"][tag]
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-5)
        # Some gradients are zero but for rounding (a bias of keys shifts all scores alike).
        # How others are rounded depends on the processor's matrix products.
        negligible = 1e-3 * max(grad.norm() for grad in one["grads"].values())
        for name, grad in one["grads"].items():
            error = (found["grads"][name] - grad).norm()
            assert error < 5e-3 * max(grad.norm(), negligible), name
    assert torch.equal(
        *(process["stage1"][tag]["grads"]["query_tokens"] for process in two_processes)
    )
