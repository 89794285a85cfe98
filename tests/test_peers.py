"""The slow paths of the benchmarks compute what the original computes, and what ours does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.reference import reference_batch, reference_model, reference_negatives, tensors
from tests.models.reference_stage2 import recorded, reference_stage2, stage2_tensors

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a benchmark sees its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_stage1_losses_and_gradients_are_the_originals_and_ours() -> None:
    from peers.stage1 import peer_losses

    samples, negatives = reference_batch("eva_frozen"), reference_negatives("eva_frozen")
    model, own = reference_model().train(), reference_model().train()
    found, ours = peer_losses(model, samples, negatives), own(samples, negatives)
    for key, value in ours.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    found["loss"].backward()
    grads = gradients(model)
    for name, expected in tensors("eva_frozen_grads").items():
        if not name.startswith("Qformer.cls.predictions.decoder"):  # the tied copies
            wrong = (grads[name].reshape(expected.shape) - expected).norm()
            assert wrong <= 1e-4 * expected.norm() + 1e-5, name


def test_stage1_draws_other_rows_where_none_are_given() -> None:
    from peers.stage1 import peer_losses

    losses = peer_losses(reference_model().train(), reference_batch("eva_frozen"))
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("case", ["prompt", "noprompt"])
def test_stage2_loss_and_gradients_are_the_originals_and_ours(case: str, tmp_path: Path) -> None:
    from peers.stage2 import peer_loss

    expected = recorded("opt")["cases"][case]
    samples = {
        "image": stage2_tensors("opt", "prompt_tensors")["image"],
        "text_input": expected["text_input"],
    }
    prompt = expected.get("prompt", "")
    model, own = (reference_stage2("opt", tmp_path, prompt=prompt).train() for _ in range(2))
    found, ours = peer_loss(model, samples)["loss"], own(samples)["loss"]
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-6)
    assert float(found.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    found.backward()
    ours.backward()
    grads = gradients(model)
    for name, grad in gradients(own).items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name
    assert model.language.model.config._attn_implementation == "sdpa"
