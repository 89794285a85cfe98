"""The state of a model as if its LoRA adapters had always been part of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lavislite.models.base import distinct_tensors


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor, tied ones once, adapters added to the layers they sit on.

    The model itself is not changed, and apart from adapted layers nothing is copied.
    """
    state = {name: tensor.detach() for name, tensor in distinct_tensors(model).items()}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            _merge(state, name, module)
    return state


def _merge(state: dict[str, Tensor], name: str, layer: Any) -> None:
    """Replace what an adapted layer has in `state` by what the bare layer would have."""
    base = f"{name}.base_layer."
    merged = {
        f"{name}.{key.removeprefix(base)}": tensor
        for key, tensor in state.items()
        if key.startswith(base)
    }
    weight = merged[f"{name}.weight"]
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).to(weight)
    merged[f"{name}.weight"] = weight
    for key in [key for key in state if key.startswith(f"{name}.")]:
        del state[key]
    state |= merged
