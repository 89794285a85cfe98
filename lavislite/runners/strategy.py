"""How a model is spread over processes: the seam between the loop and torch's parallel wrappers.

A strategy gives the loop four things: the module to call (`model`), the module behind the wrapper
(`unwrapped`), when gradients are exchanged (`sync_grads`) and how they are clipped. A sharded
strategy (FSDP) is a third class with the same four.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lavislite.common import distributed


class SingleProcess:
    """One process, one device: nothing is wrapped."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.unwrapped = model.to(device)
        self.model: nn.Module = self.unwrapped

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Surrounds forward and backward of one micro-batch; `wanted` on the last of a step."""
        return nullcontext()

    def clip_grad_norm(self, params: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Total gradient norm before clipping, on the device; clips in place if asked to."""
        params = list(params)
        grads = [p.grad for p in params if p.grad is not None]
        total = nn.utils.get_total_norm(grads)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(params, max_norm, total)
        return total


class DataParallel(SingleProcess):
    """Every process holds the whole model; gradients are averaged while backward runs."""

    def __init__(
        self, model: nn.Module, device: torch.device, *, find_unused_parameters: bool
    ) -> None:
        super().__init__(model, device)
        self._ddp = nn.parallel.DistributedDataParallel(
            self.unwrapped,
            # Frozen buffers never change, so sending them before each step would be for nothing.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=find_unused_parameters,
        )
        self.model = self._ddp

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext() if wanted else self._ddp.no_sync()


def make_strategy(
    model: nn.Module, device: torch.device, *, find_unused_parameters: bool = False
) -> SingleProcess:
    """The strategy for the processes that are there."""
    if distributed.is_distributed():
        return DataParallel(model, device, find_unused_parameters=find_unused_parameters)
    return SingleProcess(model, device)
