"""Where the memory and the parameters are."""

from __future__ import annotations

import sys

import torch
from torch import nn


def peak_memory_gb(device: torch.device) -> dict[str, float]:
    """Peak of this process in GB: ``host`` (resident) and, on a GPU, ``cuda`` (allocated)."""
    peak = {"host": _peak_resident_bytes() / 2**30}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak


def used_gb(device: torch.device) -> float:
    """Peak memory in GB where the model is."""
    peak = peak_memory_gb(device)
    return peak["cuda"] if "cuda" in peak else peak["host"]


def _peak_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes on Linux


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trainable, frozen)."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in module.parameters()) - trainable


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """(part, trainable, frozen) per direct child, then the model's own parameters and the total."""
    rows = [(name, *count_parameters(child)) for name, child in model.named_children()]
    own = list(model.parameters(recurse=False))
    if own:
        trainable = sum(p.numel() for p in own if p.requires_grad)
        rows.append(("(its own)", trainable, sum(p.numel() for p in own) - trainable))
    rows = [row for row in rows if row[1] or row[2]]
    return [*rows, ("total", *count_parameters(model))]
