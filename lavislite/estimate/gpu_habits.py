"""What a GPU computes otherwise than a CPU, for tensors that only say they are on a CPU.

Shapes are followed on CPU tensors, because a machine without a GPU cannot run a backward pass of
CUDA tensors, not even of fake ones. Three habits make a difference to memory: fused attention
(which keeps no probabilities), dropout (whose mask is one byte per number), and what autocast keeps
in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavislite.estimate.replaced import replaced
from lavislite.models.blip2 import dropout

# Autocast on CUDA computes these in float32, autocast on a CPU does not.
_IN_FLOAT32 = ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss")


@contextmanager
def gpu_habits() -> Iterator[None]:
    """Inside, functions of torch take the ways that they take on a GPU."""
    in_float32 = {name: _first_in_float32(getattr(F, name)) for name in _IN_FLOAT32}
    fused: dict[str, Any] = {"scaled_dot_product_attention": _attention, "dropout": _dropout}
    bare = {"softmax": _first_in_float32(torch.softmax)}
    with ExitStack() as stack:
        stack.enter_context(replaced(F, in_float32 | fused))
        stack.enter_context(replaced(torch, bare))
        stack.enter_context(replaced(dropout, {"draws_singly": lambda _: False}))
        yield


def _first_in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def in_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu") and x.is_floating_point():
            x = x.float()
        return function(x, *args, **kwargs)

    return in_float32


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return torch.ops.aten.native_dropout(x, p, True)[0] if training and p > 0 else x


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by the kernel that a GPU takes when there is a mask.

    The one without a mask (flash) keeps the same tensors.
    """
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -1e4)
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale
    )[0]
