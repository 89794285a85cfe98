"""GPUs by short names: how fast, and how much of their memory is there to use."""

from __future__ import annotations

from dataclasses import dataclass

from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.runners.throughput import peak_tflops

# Short name -> torch's name (by which its speed is known), GiB as torch reports them.
GPUS = {
    "a100-40g": ("NVIDIA A100-SXM4-40GB", 39.4),
    "a100-80g": ("NVIDIA A100-SXM4-80GB", 79.2),
    "h100": ("NVIDIA H100 80GB HBM3", 79.2),
    "h200": ("NVIDIA H200", 139.8),
    "b200": ("NVIDIA B200", 178.3),
    "l40s": ("NVIDIA L40S", 44.4),
    "a10": ("NVIDIA A10", 22.0),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 23.5),
    "rtx3090": ("NVIDIA GeForce RTX 3090", 23.6),
    "v100-32g": ("Tesla V100-SXM2-32GB", 31.7),
    "v100-16g": ("Tesla V100-SXM2-16GB", 15.8),
    "t4": ("Tesla T4", 14.6),
}
_WITHOUT_BF16 = ("v100-32g", "v100-16g", "t4")


@dataclass(frozen=True)
class Gpu:
    """tflops: dense products in bf16 or fp16, at peak. memory_gib: what torch can use of it."""

    name: str
    tflops: float
    memory_gib: float

    @property
    def precision(self) -> str:
        """What ``auto`` is on it."""
        return "fp16" if self.name in _WITHOUT_BF16 else "bf16"


def find_gpu(name: str, memory_gib: float | None = None) -> Gpu:
    """The GPU called `name`, perhaps with another memory.

    Raises:
        ConfigError: no such GPU.
    """
    name = name.lower()
    if name not in GPUS:
        raise ConfigError(
            f"--gpu: '{name}' is unknown.{did_you_mean(name, GPUS)} Known: {', '.join(GPUS)}."
        )
    title, usual = GPUS[name]
    peak = peak_tflops(title)
    assert peak is not None, title
    return Gpu(name, peak, usual if memory_gib is None else memory_gib)
