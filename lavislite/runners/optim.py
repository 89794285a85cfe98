"""Optimizer, learning rate and number format, from the run's options."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig
from lavislite.runners.adamw import AdamW

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 on GPUs that have it, fp16 on older ones, fp32 elsewhere.

    Raises:
        ConfigError: unknown name, or a format that the device does not train in.
    """
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name not in PRECISIONS:
        known = ["auto", *PRECISIONS]
        raise ConfigError(
            f"run.precision: '{name}' is unknown.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}."
        )
    if name == "fp16" and device.type not in ("cuda", "cpu"):
        raise ConfigError(f"run.precision: fp16 is not supported on {device.type}. Use fp32.")
    return name


def make_autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the context in which models compute; parameters stay fp32."""
    return partial(
        torch.autocast,
        device_type=device.type,
        dtype=PRECISIONS[precision] if precision != "fp32" else None,
        enabled=precision != "fp32",
    )


def make_optimizer(model: Any, cfg: RunConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the model's own parameter groups, each with its `lr_scale` and parameter `names`.

    Raises:
        ConfigError: nothing to train, or a trainable parameter is not fp32.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("The model has no trainable parameters: everything in it is frozen.")
    for name, p in trainable.items():
        if p.dtype != torch.float32:
            raise ConfigError(
                f"Trainable parameter '{name}' is {p.dtype}; trainable parameters must be float32 "
                "(run.precision sets the format they compute in). Freeze the part it belongs to, "
                "or set that part's precision to fp32, e.g. model.vision.precision: fp32."
            )
    groups = model.get_optimizer_params(cfg.weight_decay, cfg.lr_layer_decay)
    # The fused kernel is the fastest, and it can skip an update without the host knowing (CUDA).
    fused = device.type in ("cuda", "cpu")
    return AdamW(groups, lr=cfg.init_lr, betas=(cfg.beta1, cfg.beta2), fused=fused)


def make_schedule(
    cfg: RunConfig, *, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The learning rate as a function of the optimizer step alone."""
    return partial(
        catalog.lr_schedules.get(cfg.lr_sched),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        init_lr=cfg.init_lr,
        min_lr=cfg.min_lr,
        warmup_lr=cfg.warmup_lr,
        warmup_steps=cfg.warmup_steps,
        lr_decay_rate=cfg.lr_decay_rate,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """`lr` for every group, times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.setdefault("lr_scale", 1.0)


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
