"""FSDP2: every process holds a part of the model, and the whole of what it computes with just now.

Frozen towers are divided layer by layer, in the type they are stored in: a layer is brought
together right before it computes and given up after. What is trained between the towers (the
Q-Former with its heads, in float32) is one unit: whole during a step, because three objectives call
it in turn; its gradients and the optimizer's moments are divided. Frozen parameters outside of the
layers (embeddings, position tables) stay whole on every process: they are small, and tied ones
cannot be divided apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed import HashStore, init_process_group, is_initialized
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lavislite.common import distributed
from lavislite.runners.blocks import blocks_of, towers_of
from lavislite.runners.strategy import SingleProcess


class Sharded(SingleProcess):
    """Parameters, gradients and moments in parts; as one GPU it is FSDP with a single part."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        if not is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        _keep_identity(model)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        self._layers: list[Any] = []
        for tower in towers_of(model):
            for block in blocks_of(tower):
                # One after the other: the device never holds the whole tower.
                self._layers.append(fully_shard(block.to(device), mesh=mesh))
        kept = _replicated(model, self._layers)
        for parameter in kept:
            parameter.data = parameter.data.to(device)
        root: Any = model
        fully_shard(root, mesh=mesh, reshard_after_forward=False, ignored_params=kept)
        # Whichever part is called first takes itself for the root; evaluation calls parts.
        root.first_call = lambda: None
        register_fsdp_forward_method(root, "first_call")
        with torch.no_grad():
            root.first_call()
        root.reset_iter_state()
        self._root = root
        super().__init__(model, device)

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:
        self._root.set_requires_gradient_sync(wanted)
        self._root.set_reshard_after_backward(wanted, recurse=False)
        return nullcontext()

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """See `SingleProcess.whole_model`: brings all layers together, so there must be room."""
        for unit in (*self._layers, self._root):
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for layer in self._layers:
                layer.set_reshard_after_forward(True, recurse=False)
            self._root.reset_iter_state()  # also forgets who was called, which may differ


def _keep_identity(model: Any) -> None:
    """Fingerprints of frozen parts are taken of whole weights, and do not change: now."""
    if hasattr(model, "identity"):
        known = model.identity()
        model.identity = lambda: known


def _replicated(model: nn.Module, layers: Iterable[Any]) -> set[nn.Parameter]:
    """Frozen parameters that are in none of the layers."""
    divided = {id(p) for layer in layers for p in layer.parameters()}
    return {p for p in model.parameters() if not p.requires_grad and id(p) not in divided}
