"""One optimizer step: forward and backward over its micro-batches, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lavislite.common.errors import TrainingError
from lavislite.common.loading import to_device
from lavislite.common.schema import RunConfig
from lavislite.runners.blocks import checkpoint_activations
from lavislite.runners.compile import compile_layers
from lavislite.runners.guard import Event, FiniteGuard
from lavislite.runners.log import Meter
from lavislite.runners.optim import make_optimizer, parameters, set_lr
from lavislite.runners.strategy import make_strategy
from lavislite.runners.throughput import Arithmetic

Batch = dict[str, Any]
_SMALLEST_SCALE = 2.0**-10


class TrainStep:
    """The model under its strategy, its optimizer, and the running means of what happened."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        task: Any,
        model: Any,
        device: torch.device,
        precision: str,
        autocast: Callable[[], AbstractContextManager[Any]],
        record_id: Callable[[int], str],
    ) -> None:
        self.cfg, self.task, self.device, self.autocast = cfg, task, device, autocast
        self.compiled = compile_layers(model, cfg, device)
        checkpoint_activations(model, cfg.activation_checkpointing, compiled=self.compiled.on)
        unused = cfg.find_unused_parameters or getattr(model, "leaves_parameters_unused", False)
        self.strategy = make_strategy(
            model, device, name=cfg.strategy, find_unused_parameters=unused
        )
        self.optimizer = make_optimizer(model, cfg, device)  # of the strategy's parameters
        fp16 = precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.guard = FiniteGuard(
            device, record_id, scaled=fp16, allowed=cfg.skip_nonfinite, spike=cfg.grad_spike
        )
        self.meter = Meter()
        self.samples = 0
        self.arithmetic = Arithmetic(device, precision, uncompiled=self.compiled.paused)
        self._parameters = parameters(self.optimizer)
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]

    def __call__(self, step: int, lr: float, micro_batches: Sequence[Batch]) -> None:
        """Take step number `step`. On a GPU the host does not wait for it.

        Losses are averaged over the micro-batches; what is logged is the average as well.

        Raises:
            TrainingError: loss or gradient is not finite (on a GPU: raised by `read`).
        """
        set_lr(self.optimizer, lr)
        statistics = _running_statistics(self._norms)
        with self.compiled.step(), self.arithmetic.counted(sum(map(_size, micro_batches))):
            found = [
                self._backward(batch, len(micro_batches), last=i == len(micro_batches) - 1)
                for i, batch in enumerate(micro_batches)
            ]
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.strategy.clip_grad_norm(self._parameters, self.cfg.clip_grad_norm)
        total = torch.stack([losses["loss"] for losses in found]).sum()
        skip, bad = self.guard.observe(step, total, grad_norm, micro_batches)
        for losses in found:
            self.meter.add(losses, ~bad)
        self.meter.add({"grad_norm": grad_norm}, ~skip)
        for now, before in statistics:
            now.copy_(torch.where(skip, before, now))
        if self.guard.due():
            self.guard.check()
        _update(self.optimizer, skip)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.strategy.sync_statistics()

    def _backward(self, batch: Batch, parts: int, *, last: bool) -> dict[str, Tensor]:
        """Add the gradient of one of `parts` micro-batches; its losses, detached."""
        samples = to_device(batch, self.device)
        with self.strategy.sync_grads(last):
            with self.autocast():
                losses = self.task.train_step(self.strategy.model, samples)
            self.scaler.scale(losses["loss"] / parts).backward()
        self.samples += _size(batch)
        return {name: value.detach() for name, value in losses.items()}

    def read(self) -> dict[str, float]:
        """Means since the last reading, over all processes; here the host waits for the GPU.

        Steps that were left out do not count, but their number stands under ``skipped`` where
        `skip_nonfinite` allows for them.

        Raises:
            TrainingError: a loss or gradient was not finite, once more often than allowed.
        """
        self.guard.check()
        self.compiled.look()
        means = self.meter.read()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingError(
                "fp16 gradients overflow at every scale. Use run.precision=bf16 or fp32."
            )
        return means | ({"skipped": self.guard.skipped} if self.cfg.skip_nonfinite else {})

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Surrounds what else calls the model; see `SingleProcess.whole_model`. Not compiled."""
        with self.strategy.whole_model(), self.compiled.paused():
            yield

    def events(self) -> list[Event]:
        """Steps left out, and gradient spikes, since the last call; see `FiniteGuard.events`."""
        return self.guard.events()

    def state_dict(self) -> dict[str, Any]:
        """What this process's next log depends on, as plain values and CPU tensors.

        All processes call it together; each keeps its own. Optimizer and scaler are not in it.

        Raises:
            TrainingError: a loss or gradient was not finite, once more often than allowed.
        """
        return {
            "guard": self.guard.state_dict(),
            "meter": self.meter.state_dict(),
            "samples": self.samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.guard.load_state_dict(state["guard"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.samples = int(state["samples"])


def _update(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One optimizer step; where `skip` is true, weights, moments and step count stay as they are.

    The fused kernels look at the flag themselves, so that the host need not. It was made from
    gradients that the scaler has already unscaled: the scaler's own `step` has nothing to add.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not skip:
        optimizer.step()


def _running_statistics(norms: Sequence[_BatchNorm]) -> list[tuple[Tensor, Tensor]]:
    """The statistics of those batch norms that train, each with a copy."""
    return [(b, b.clone()) for norm in norms if norm.training for b in norm.buffers(recurse=False)]


def _size(batch: Batch) -> int:
    """Samples in a batch: the length of its first entry."""
    return len(next(iter(batch.values())))
