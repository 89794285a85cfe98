"""One optimizer step: forward and backward over its micro-batches, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from lavislite.common.errors import TrainingError
from lavislite.common.loading import to_device
from lavislite.common.schema import RunConfig
from lavislite.runners.guard import FiniteGuard
from lavislite.runners.log import Meter
from lavislite.runners.optim import make_optimizer, parameters, set_lr
from lavislite.runners.strategy import make_strategy

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
        self.optimizer = make_optimizer(model, cfg, device)
        unused = cfg.find_unused_parameters or getattr(model, "leaves_parameters_unused", False)
        self.strategy = make_strategy(model, device, find_unused_parameters=unused)
        fp16 = precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.guard = FiniteGuard(device, record_id, scaled=fp16)
        self.meter = Meter()
        self.samples = 0
        self._parameters = parameters(self.optimizer)

    def __call__(self, step: int, lr: float, micro_batches: Sequence[Batch]) -> None:
        """Take step number `step`. On a GPU the host does not wait for it.

        Losses are averaged over the micro-batches; what is logged is the average as well.

        Raises:
            TrainingError: loss or gradient is not finite (on a GPU: raised by `read`).
        """
        set_lr(self.optimizer, lr)
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(micro_batches):
            samples = to_device(batch, self.device)
            with self.strategy.sync_grads(i == len(micro_batches) - 1):
                with self.autocast():
                    losses = self.task.train_step(self.strategy.model, samples)
                self.scaler.scale(losses["loss"] / len(micro_batches)).backward()
            self.meter.add(losses)
            loss_sum += losses["loss"].detach()
            self.samples += _size(batch)
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.strategy.clip_grad_norm(self._parameters, self.cfg.clip_grad_norm)
        self.meter.add({"grad_norm": grad_norm})
        skip = self.guard.observe(step, loss_sum, grad_norm, micro_batches)
        if self.guard.every_step:
            self.guard.check()
        elif not self.scaler.is_enabled():
            # Where `skip` is 1 the fused kernel leaves the weights alone; the scaler does the same.
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.strategy.sync_statistics()

    def read(self) -> dict[str, float]:
        """Means since the last reading, over all processes; here the host waits for the GPU.

        Raises:
            TrainingError: a loss or gradient was not finite.
        """
        means = self.meter.read()
        self.guard.check()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingError(
                "fp16 gradients overflow at every scale. Use run.precision=bf16 or fp32."
            )
        return means


def _size(batch: Batch) -> int:
    """Samples in a batch: the length of its first entry."""
    return len(next(iter(batch.values())))
