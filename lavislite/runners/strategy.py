"""How a model is spread over processes: the seam between the loop and torch's parallel wrappers.

A strategy gives the loop the module to call (`model`) and the module behind it (`unwrapped`), says
when gradients are exchanged (`sync_grads`) and how they are clipped, brings together what has to be
the same after a step (`sync_statistics`), and makes the model whole for an evaluation
(`whole_model`). What it saves does not tell which strategy saved it, so any continues any.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lavislite.common import distributed
from lavislite.common.errors import ConfigError
from lavislite.common.sharded import is_quantized, part_like, whole

State = dict[str, Tensor]


class SingleProcess:
    """One process, one device: nothing is wrapped."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.unwrapped: Any = model.to(device)
        self.model: nn.Module = self.unwrapped
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]

    # ---- a step

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Surrounds forward and backward of one micro-batch; `wanted` on the last of a step."""
        return nullcontext()

    def clip_grad_norm(self, params: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Total gradient norm before clipping, on the device; clips in place if asked to."""
        params = list(params)
        grads = [p.grad for p in params if p.grad is not None]
        total = whole(nn.utils.get_total_norm(grads))
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(params, max_norm, total)
        return total

    def sync_statistics(self) -> None:
        """After a step: the running statistics of batch norms are the same on every process.

        They are the mean over the processes, each of which has seen its own part of the batch.
        Batch norms normalise with their own process's part, as is usual; so a backbone that trains
        them depends on the number of processes, but no metric or checkpoint on which one it is.
        """
        norms = [norm for norm in self._norms if norm.training]
        stats = [
            s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None
        ]
        if stats and distributed.is_distributed():
            mean = distributed.all_reduce_sum(torch.cat(stats)) / distributed.world_size()
            for own, shared in zip(stats, mean.split([len(s) for s in stats]), strict=True):
                own.copy_(shared)

    # ---- between steps

    def whole_model(self) -> AbstractContextManager[None]:
        """Surrounds whatever calls the model other than a training step, on all processes.

        Inside, every process has all weights, and may call what it likes as often as it likes.
        """
        return nullcontext()

    def trainable_state(self) -> State:
        """Whole copies of what a checkpoint holds: on the main process; empty on the others."""
        state = {name: _copied(t) for name, t in self.unwrapped.trainable_state_dict().items()}
        return state if distributed.is_main() else {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, State]:
        """Parameter name -> its entries, whole copies: on the main process; empty on the others."""
        names = {id(p): name for name, p in self.unwrapped.named_parameters()}
        state = {
            names[id(p)]: {key: _copied(value) for key, value in entries.items()}
            for p, entries in optimizer.state.items()
        }
        return state if distributed.is_main() else {}

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, saved: dict[str, State]
    ) -> None:
        """Bring back what `optimizer_state` of any strategy returned; every process passes it all.

        Rates, decay and the like stay as the configuration has them.

        Raises:
            ValueError: it is about other parameters.
        """
        parameters = dict(self.unwrapped.named_parameters())
        numbers = _numbers(optimizer)
        unknown = [n for n in saved if n not in parameters or id(parameters[n]) not in numbers]
        if unknown:
            raise ValueError(f"it knows '{unknown[0]}' and {len(unknown) - 1} more that do not")
        state = {
            numbers[id(parameters[name])]: {
                key: part_like(value, parameters[name])
                if value.shape == parameters[name].shape
                else value
                for key, value in entries.items()
            }
            for name, entries in saved.items()
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class DataParallel(SingleProcess):
    """Every process holds the whole model; gradients are averaged while backward runs."""

    def __init__(
        self, model: nn.Module, device: torch.device, *, find_unused_parameters: bool
    ) -> None:
        super().__init__(model, device)
        # Alike on all processes, as all that is frozen; and DDP could not send them.
        skipped = [n for n, p in self.unwrapped.named_parameters() if is_quantized(p)]
        _leave_out(self.unwrapped, skipped)
        self._ddp = nn.parallel.DistributedDataParallel(
            self.unwrapped,
            gradient_as_bucket_view=True,
            find_unused_parameters=find_unused_parameters,
        )
        # Not before each forward: most never change, and `sync_statistics` sees to the others.
        self._ddp.broadcast_buffers = False
        self.model = self._ddp

    def sync_grads(self, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext() if wanted else self._ddp.no_sync()


def resolve_strategy(name: str, device: torch.device) -> str:
    """``auto`` is ``single`` for one process and ``ddp`` for several.

    Raises:
        ConfigError: it does not suit the number of processes, or the device.
    """
    several = distributed.is_distributed()
    if name == "auto":
        return "ddp" if several else "single"
    if name == "single" and several:
        raise ConfigError(
            f"run.strategy: single is for one process; {distributed.world_size()} were started. "
            "Use ddp (every process holds the model) or fsdp (every process holds a part of it)."
        )
    if name == "fsdp" and device.type not in ("cuda", "cpu"):
        raise ConfigError(f"run.strategy: fsdp needs CUDA (or the CPU), not {device.type}.")
    return name if several or name == "fsdp" else "single"


def make_strategy(
    model: nn.Module,
    device: torch.device,
    *,
    name: str = "auto",
    find_unused_parameters: bool = False,
) -> SingleProcess:
    """The strategy called `name` for the processes that are there.

    It may replace the model's parameters: make the optimizer after it.

    Raises:
        ConfigError: see `resolve_strategy`.
    """
    name = resolve_strategy(name, device)
    if name == "fsdp":
        if any(map(is_quantized, model.parameters())):
            raise ConfigError(
                "run.strategy: fsdp cannot divide quantised weights. Use ddp, or set quantization "
                "of model.vision and model.language to null."
            )
        from lavislite.runners.sharding import Sharded

        return Sharded(model, device)
    if name == "ddp":
        return DataParallel(model, device, find_unused_parameters=find_unused_parameters)
    return SingleProcess(model, device)


def _leave_out(model: nn.Module, names: list[str]) -> None:
    ignore = nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, names)


def _copied(tensor: Tensor) -> Tensor:
    """A copy in host memory on the main process; the others only help to bring it together."""
    tensor = whole(tensor.detach())
    return tensor.to("cpu", copy=True) if distributed.is_main() else tensor.new_empty(0)


def _numbers(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Parameter's id -> its number in the optimizer's own state dict."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {id(p): number for number, p in enumerate(parameters)}
