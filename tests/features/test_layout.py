"""Bytes of features: sizes, what comes back, how far from what went in."""

from __future__ import annotations

import pytest
import torch

from lavislite.features.layout import Layout, distance

FEATURES = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize(("dtype", "nbytes"), [("fp32", 192), ("bf16", 128), ("int8", 64)])
def test_sizes_are_whole_multiples_of_64(dtype: str, nbytes: int) -> None:
    layout = Layout(5, 7, dtype)  # 35 numbers: 140, 70 and 35 + 5 * 4 bytes
    assert layout.nbytes == nbytes
    assert layout.encode(FEATURES).shape == (4, nbytes)


def test_fp32_comes_back_to_the_bit() -> None:
    layout = Layout(5, 7, "fp32")
    for raw, features in zip(layout.encode(FEATURES), FEATURES, strict=True):
        assert torch.equal(layout.decode(raw), features)
    assert layout.relative_error(FEATURES) == 0


def test_bf16_is_rounded_once() -> None:
    layout = Layout(5, 7, "bf16")
    back = layout.decode(layout.encode(FEATURES)[2])
    assert back.dtype == torch.bfloat16
    assert torch.equal(back, FEATURES[2].to(torch.bfloat16))
    assert layout.relative_error(FEATURES.to(torch.bfloat16)) == 0


def test_int8_rounds_to_a_scale_of_each_token() -> None:
    layout, features = Layout(5, 7, "int8"), FEATURES.clone()
    features[:, 1] *= 1000  # does not spoil the tokens beside it
    features[:, 2] = 0
    back = torch.stack([layout.decode(raw) for raw in layout.encode(features)]).float()
    step = features.abs().amax(-1, keepdim=True) / 127
    largest = features.abs() * 2**-8  # it comes back in bfloat16
    assert ((back - features).abs() <= step / 2 + largest).all()
    assert (back[:, 2] == 0).all()
    assert layout.relative_error(FEATURES) == pytest.approx(0.005, abs=0.003)


def test_features_that_are_no_numbers_stay_so() -> None:
    features = FEATURES.clone()
    features[0, 0, 0], features[1, 0, 0] = float("nan"), float("inf")
    for dtype in ("fp32", "bf16", "int8"):
        layout = Layout(5, 7, dtype)
        for raw in layout.encode(features)[:2]:
            assert not layout.decode(raw).isfinite().all()


def test_distance_is_relative() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0])
    assert distance(one, other) == pytest.approx(0.9)
