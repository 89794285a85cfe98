"""How a model is spread over processes: the seam between the loop and torch's parallel wrappers.

A strategy gives the loop five things: the module to call (`model`), the module behind the wrapper
(`unwrapped`), when gradients are exchanged (`sync_grads`), how they are clipped, and what has to be
brought together after a step (`sync_statistics`). A sharded strategy (FSDP) is a third class with
the same five.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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

    def sync_statistics(self) -> None:
        """After a step: the running statistics of batch norms are the same on every process."""


class DataParallel(SingleProcess):
    """Every process holds the whole model; gradients are averaged while backward runs."""

    def __init__(
        self, model: nn.Module, device: torch.device, *, find_unused_parameters: bool
    ) -> None:
        super().__init__(model, device)
        self._ddp = nn.parallel.DistributedDataParallel(
            self.unwrapped,
            gradient_as_bucket_view=True,
            find_unused_parameters=find_unused_parameters,
        )
        # Not before each forward: most never change, and `sync_statistics` sees to the others.
        self._ddp.broadcast_buffers = False
        self.model = self._ddp
        self._norms = [m for m in self.unwrapped.modules() if isinstance(m, _BatchNorm)]

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext() if wanted else self._ddp.no_sync()

    def sync_statistics(self) -> None:
        """The mean over the processes, each of which has seen its own part of the batch.

        Batch norms normalise with their own process's part, as is usual; so a backbone that trains
        them depends on the number of processes, but no metric or checkpoint on which one it is.
        """
        norms = [norm for norm in self._norms if norm.training]
        stats = [
            s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None
        ]
        if stats:
            mean = distributed.all_reduce_sum(torch.cat(stats)) / distributed.world_size()
            for own, shared in zip(stats, mean.split([len(s) for s in stats]), strict=True):
                own.copy_(shared)


def make_strategy(
    model: nn.Module, device: torch.device, *, find_unused_parameters: bool = False
) -> SingleProcess:
    """The strategy for the processes that are there."""
    if distributed.is_distributed():
        return DataParallel(model, device, find_unused_parameters=find_unused_parameters)
    return SingleProcess(model, device)
