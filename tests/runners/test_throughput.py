"""Peaks by device name, and counting that follows torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lavislite.runners.throughput import Arithmetic, FlopCounter, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A1000", None),
        ("Some other device", None),
    ],
)
def test_peaks_are_found_by_whole_words(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_utilisation_is_told_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    layer, x = nn.Linear(1000, 1000), torch.zeros(4, 1000)
    bf16, fp32 = (Arithmetic(torch.device("cuda"), p) for p in ("bf16", "fp32"))
    for work in (bf16, fp32):
        for _ in range(3):
            with work.counted(samples=4):
                layer(x)
    assert bf16.rates(494.5e6) == {"tflops": pytest.approx(989), "mfu": pytest.approx(1)}
    assert fp32.rates(494.5e6) == {"tflops": pytest.approx(989)}


def test_attention_convolution_and_recomputation_count_as_torch_counts_them() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    patches = nn.Conv2d(3, 32, 4, 4)
    images = torch.randn(2, 3, 8, 8)

    def step() -> None:
        x = patches(images).flatten(2).mT
        x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        x.square().sum().backward()

    with FlopCounterMode(display=False) as theirs:
        step()
    with FlopCounter() as ours:
        step()
    assert ours.flops == theirs.get_total_flops() > 1e5
