"""Activation checkpointing: what the backward pass needs is computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *args: Any, offload: bool, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, of which only the arguments are kept for the backward pass.

    There it is called again, with the same dropout. Parameters may take part in several such calls
    (the Q-Former's do, in each of its objectives), and with any strategy.

    Args:
        offload: the tensors in `args` wait in host memory.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
