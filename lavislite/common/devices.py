"""Which device this process computes on."""

from __future__ import annotations

import os

import torch

from lavislite.common.errors import ConfigError


def local_rank() -> int:
    """Number of this process on its own machine."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else 0


def resolve_device(name: str) -> torch.device:
    """``auto`` -> this process's GPU, or the CPU; ``cuda`` -> this process's GPU; else as named.

    Raises:
        ConfigError: CUDA asked for and absent, or fewer GPUs than processes on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"run.device: '{name}' is not a device. Use auto, cpu, cuda or mps."
        ) from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(
            f"run.device: '{name}' asks for CUDA, which is not available. Use auto or cpu."
        )
    index = device.index if device.index is not None else local_rank()
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local_rank()} of this machine wants GPU {index}, but there are "
            f"{torch.cuda.device_count()}. Start at most one process per GPU."
        )
    return torch.device("cuda", index)
