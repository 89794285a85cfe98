"""Losses and gradients that are not numbers: noticed before they reach the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lavislite.common import distributed
from lavislite.common.errors import TrainingError


class FiniteGuard:
    """Remembers the first step whose loss or gradient was not finite, without waiting for a GPU.

    On the CPU looking costs nothing, so it looks at every step, before the optimizer does. On a GPU
    the optimizer gets `skip`, a flag on the device with which its fused kernel leaves the weights
    alone, and the host looks when it logs anyway. The weights are unharmed in both cases.

    With fp16's gradient scaler, overflowing gradients are normal (it skips those steps and lowers
    the scale); then only the loss counts.
    """

    def __init__(
        self, device: torch.device, record_id: Callable[[int], str], *, scaled: bool
    ) -> None:
        self.every_step = device.type != "cuda"
        self._record_id = record_id
        self._scaled = scaled
        self._first_bad = torch.full((), -1, dtype=torch.long, device=device)
        self._grad_norm = torch.zeros((), device=device)
        self._seen: dict[int, list[list[int]]] = {}

    def observe(
        self, step: int, loss: Tensor, grad_norm: Tensor, batches: Sequence[dict[str, Any]]
    ) -> Tensor:
        """Note one step; returns `skip`: 1.0 where the optimizer must not use the gradients."""
        skip = ~torch.isfinite(grad_norm)
        bad = ~torch.isfinite(loss) if self._scaled else skip | ~torch.isfinite(loss)
        new = bad & (self._first_bad < 0)
        self._first_bad = torch.where(new, step, self._first_bad)
        self._grad_norm = torch.where(new, grad_norm.detach().float(), self._grad_norm)
        self._seen[step] = [batch["index"].tolist() for batch in batches if "index" in batch]
        return skip.float()

    def check(self) -> None:
        """Forget the steps noted so far, if all was well. All processes call it together.

        Raises:
            TrainingError: naming step, gradient norm and records of the first bad step.
        """
        bad = int(self._first_bad)
        if distributed.max_int(bad) < 0:
            self._seen.clear()
            return
        mine = None
        if bad >= 0:
            ids = [self._record_id(i) for batch in self._seen[bad] for i in batch]
            mine = (bad, float(self._grad_norm), ids)
        found = sorted((r for r in distributed.all_gather_objects(mine) if r), key=lambda r: r[0])
        step, grad_norm, _ = found[0]
        ids = [i for s, _, part in found if s == step for i in part]
        shown = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        norm = "not a number" if math.isnan(grad_norm) else f"{grad_norm:.4g}"
        raise TrainingError(
            f"The loss or its gradient is not finite at step {step + 1} (gradient norm {norm}). "
            f"Records of that step: {shown or 'unknown'}. The weights are as they were before it. "
            "Usual cures: a lower run.init_lr, more run.warmup_steps, run.clip_grad_norm=1.0, "
            "run.precision=bf16 or fp32 instead of fp16."
        )
