"""The repeated layers of towers, and computing them again instead of keeping what they computed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from lavislite.common.recompute import recomputed


def towers_of(model: Any) -> Sequence[nn.Module]:
    """Sub-modules made of layers that stand by themselves; a model of your own may name none."""
    return model.towers() if hasattr(model, "towers") else ()


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """The layers of which `tower` is a stack: its `blocks`, else its outermost lists of a kind.

    Those are the ``ModuleList`` with at least two members, all of one class: an encoder's and a
    decoder's layers.
    """
    own = getattr(tower, "blocks", None)
    if own is not None and len(own):
        return list(own)
    if isinstance(tower, nn.ModuleList) and len(tower) > 1 and len(set(map(type, tower))) == 1:
        return list(tower)
    return [block for child in tower.children() for block in blocks_of(child)]


def checkpoint_activations(model: Any, mode: str, *, compiled: bool = False) -> None:
    """Make `model` keep less for the backward pass, as ``run.activation_checkpointing`` says.

    Args:
        mode: "none"; "recompute" computes every layer again; "offload" does and lets the inputs of
            the layers wait in host memory.
        compiled: the layers' `forward` is compiled already.
    """
    if mode == "none":
        return
    offload = mode == "offload"
    for tower in towers_of(model):
        for block in blocks_of(tower):
            if compiled or any(p.requires_grad for p in block.parameters()):
                # Not fairscale's: it starts a backward pass within the backward pass, in which DDP
                # sees gradients of parameters it does not expect; and it calls the class's own
                # `forward`, which is not compiled.
                block.forward = partial(recomputed, block.forward, offload=offload)
            else:
                _checkpoint_frozen(block, offload=offload)
    if hasattr(model, "recompute_activations"):
        model.recompute_activations(offload=offload)


def _checkpoint_frozen(block: nn.Module, *, offload: bool) -> None:
    with warnings.catch_warnings():  # fairscale asks torch for what has a new name by now
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from fairscale.nn.checkpoint import checkpoint_wrapper

    checkpoint_wrapper(block, offload_to_cpu=offload)
