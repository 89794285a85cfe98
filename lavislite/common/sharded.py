"""Tensors of which every process may hold only a part (FSDP2's DTensors), and other odd ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`; every process has to call it where it is in parts."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_like(tensor: Tensor, own: Any) -> Tensor:
    """Of the whole `tensor`, the part that this process holds of `own`; nothing is sent."""
    if not hasattr(own, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(device=own.device, dtype=own.dtype)
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)


def is_quantized(tensor: Tensor) -> bool:
    """Its numbers are kept in 8 bits, with scales, by a tensor class of another library."""
    return is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "full_tensor")
