"""The `run:` section: options every task shares. A task with more of them extends `RunConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lavislite.common.errors import ConfigError

Bounds = Mapping[str, tuple[float, float | None]]


def check_bounds(section: str, cfg: Any, bounds: Bounds) -> None:
    """Every number that `bounds` (key -> least and greatest) names is within; None passes.

    Raises:
        ConfigError: one is not; names its key, what was expected and what was seen.
    """
    for key, (low, high) in bounds.items():
        value = getattr(cfg, key)
        if value is not None and not (low <= value and (high is None or value <= high)):
            expected = f"{low} or more" if high is None else f"{low} to {high}"
            raise ConfigError(f"{section}.{key}: expected {expected}, saw {value}")


@dataclass
class RunConfig:
    """How long, how fast, on what, and what to keep.

    The learning rate moves once per optimizer step. `max_steps` wins over `max_epoch` when both
    are set. Metric names are ``<dataset>/<split>/<metric>``; `monitor` may leave out leading parts.
    """

    task: str = "image_text_pretrain"
    runner: str = "runner_base"

    # length and schedule
    max_epoch: int = 1
    max_steps: int | None = None
    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: float = 1e-4
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    warmup_steps: int = 0
    lr_decay_rate: float = 0.9
    lr_layer_decay: float = 1.0
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    accum_grad_iters: int = 1
    clip_grad_norm: float | None = None

    # data
    batch_size_train: int = 64
    batch_size_eval: int = 64
    num_workers: int = 2
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)

    # when to look and what to keep
    log_freq: int = 50
    eval_freq: int = 1
    eval_every_steps: int | None = None
    eval_at_start: bool = False
    save_freq: int = 1
    save_every_steps: int | None = None
    keep_last: int = 1
    monitor: str | None = None
    monitor_mode: str = "auto"
    report: bool = True
    tensorboard: bool = True
    output_dir: str = "output"
    evaluate: bool = False
    resume: str | None = None

    # machine
    device: str = "auto"
    precision: str = "auto"
    seed: int = 42
    find_unused_parameters: bool = False
    dist_timeout_minutes: int = 30

    def check(self) -> None:
        """Raise ConfigError naming the first number that cannot be."""
        check_bounds("run", self, dict.fromkeys(_COUNTS, (1, None)))
        check_bounds("run", self, dict.fromkeys(_RATES, (0, None)))
        check_bounds("run", self, dict.fromkeys(("beta1", "beta2"), (0, 0.999999)))


_COUNTS = ("max_epoch", "max_steps", "accum_grad_iters", "batch_size_train", "batch_size_eval")
_RATES = (
    *("init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate", "lr_layer_decay"),
    *("weight_decay", "clip_grad_norm", "num_workers", "log_freq", "eval_freq", "save_freq"),
    *("eval_every_steps", "save_every_steps", "seed"),
)
