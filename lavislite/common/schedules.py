"""Learning-rate schedules: pure functions of the optimizer step.

The runner calls every schedule alike, with `total_steps`, `init_lr`, `min_lr`, `warmup_lr`,
`warmup_steps`, `steps_per_epoch` and `lr_decay_rate`; each names those it needs. During warm-up the
rate rises linearly from `warmup_lr` to `init_lr` over `warmup_steps` optimizer steps, however many
epochs that takes; the schedule's own curve takes over where the two meet, so the rate never jumps.

Two deliberate differences from LAVIS. There the warm-up exists only in epoch 0, and a longer one is
cut off with a jump; and its cosine moves once per epoch, so that one long epoch is trained at a
constant rate. Here both move every step. With warm-up over, values at epoch boundaries are LAVIS's.
"""

from __future__ import annotations

import math
from typing import Any


def linear_warmup_cosine_lr(
    step: int,
    *,
    total_steps: int,
    init_lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    **_: Any,
) -> float:
    """Half a cosine from `init_lr` at step 0 to `min_lr` at `total_steps`, after a warm-up."""
    done = min(step / max(total_steps, 1), 1.0)
    cosine = min_lr + (init_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
    return min(cosine, _ramp(step, init_lr, warmup_lr, warmup_steps))


def linear_warmup_step_lr(
    step: int,
    *,
    init_lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    steps_per_epoch: int,
    lr_decay_rate: float,
    **_: Any,
) -> float:
    """`init_lr` times `lr_decay_rate` per finished epoch, at least `min_lr`, after a warm-up."""
    epoch = step // max(steps_per_epoch, 1)
    decayed = max(min_lr, init_lr * lr_decay_rate**epoch)
    return min(decayed, _ramp(step, init_lr, warmup_lr, warmup_steps))


def constant(step: int, *, init_lr: float, warmup_lr: float, warmup_steps: int, **_: Any) -> float:
    """`init_lr` throughout, after a warm-up."""
    return min(init_lr, _ramp(step, init_lr, warmup_lr, warmup_steps))


def _ramp(step: int, init_lr: float, warmup_lr: float, warmup_steps: int) -> float:
    """The warm-up line, infinite once it is over (so that the schedule's own curve is lower)."""
    if step >= warmup_steps:
        return math.inf
    return warmup_lr + (init_lr - warmup_lr) * step / warmup_steps
