"""Dropout on a CPU draws other numbers than torch's, of the same distribution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lavislite.models.blip2.dropout import Dropout, attention, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_element_is_dropped_with_its_probability(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(7, 53, 331, dtype=dtype), p)
    assert found.dtype == dtype
    share = float((found == 0).float().mean())
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / found.numel()) ** 0.5)
    kept = found[found != 0].float()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=5e-3, atol=0)
    rows = (found == 0).float().mean(-1)  # all rows alike, and no two the same
    assert rows.min() > p - 0.15
    assert rows.max() < p + 0.15
    assert not torch.equal(found[0], found[1])


def test_its_gradient_drops_the_same_elements() -> None:
    x = torch.randn(5, 9, requires_grad=True)
    found = dropout(x, 0.3)
    found.sum().backward()
    torch.testing.assert_close(found, x * x.grad)


def test_the_seed_decides() -> None:
    x = torch.ones(64)
    first, again, other = (_drawn(x, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _drawn(x: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropout(x, 0.5)


def test_ends_of_the_scale() -> None:
    x = torch.ones(8)
    assert not dropout(x, 1.0).any()
    layer = Dropout(0.0)
    assert torch.equal(layer(x), x)
    assert torch.equal(Dropout(0.9).eval()(x), x)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_when_nothing_is_dropped(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask, 1e-9), whole)
    torch.testing.assert_close(attention(q, k, v, mask, 0.0), whole)


def test_attention_drops_probabilities() -> None:
    torch.manual_seed(0)
    q = k = torch.randn(1, 1, 4, 8)
    values = torch.eye(4)[None, None]
    several = torch.stack([attention(q, k, values, None, 0.25) for _ in range(2000)])
    whole = attention(q, k, values, None, 0.0)
    assert ((several == 0).float().mean(0) - 0.25).abs().max() < 0.05
    torch.testing.assert_close(several.mean(0), whole, atol=0.03, rtol=0.05)
