"""The `run:` section: options every task shares. A task with more of them extends `RunConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean

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


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """`value` is one of `known`.

    Raises:
        ConfigError: it is not; the nearest is offered.
    """
    if value not in known:
        raise ConfigError(
            f"{key}: '{value}' is unknown.{did_you_mean(value, known)} Known: {', '.join(known)}."
        )


@dataclass
class FeatureCacheConfig:
    """What the frozen vision tower says of the training pictures, computed once and kept.

    Attributes:
        dtype: how it is stored: "fp32", "bf16", or "int8" (with a scale for each token).
        views: so many views of a picture, each augmented differently; training draws one each time.
        folder: where; null is ``features`` in the cache folder.
        max_gb: before more than so much is written, ask; without a terminal, refuse.
    """

    dtype: str = "bf16"
    views: int = 1
    folder: str | None = None
    max_gb: float = 20.0

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        check_choice("run.feature_cache.dtype", self.dtype, ("fp32", "bf16", "int8"))
        check_bounds("run.feature_cache", self, {"views": (1, None), "max_gb": (0, None)})


@dataclass
class RunConfig:
    """How long, how fast, on what, and what to keep.

    The learning rate moves once per optimizer step. `max_steps` wins over `max_epoch` when both
    are set. Metric names are ``<dataset>/<split>/<metric>``; `monitor` may leave out leading parts.

    Attributes:
        steps_per_epoch: optimizer steps that count as an epoch; null: as many as the data fill.
        save_every_minutes: a checkpoint whenever so much time has passed since the last one.
        save_async: write checkpoints in the background while training goes on.
        keep_last: so many of the newest checkpoints are kept, besides the best.
        resume: "auto" (the newest run of this project), a run or checkpoint folder, or null.
        strategy: how processes share the work: "single", "ddp" (each holds the model), "fsdp" (each
            holds a part of it); "auto" is single for one process and ddp for several.
        activation_checkpointing: "none", "recompute" (layers are computed again in the backward
            pass: less memory, more time) or "offload" (and their inputs wait in host memory).
        compile: compile the repeated layers of towers and Q-Former. The first batches of each
            length of texts, padded to a multiple of 8, take longer. Evaluation does without.
        compile_mode: "default", "reduce-overhead" (and the frozen vision tower is replayed as a
            CUDA graph) or "max-autotune" (and kernels are chosen by trying); both are for GPUs.
        feature_cache: train on stored features of the frozen vision tower; null: compute them in
            each step. ``true`` takes the defaults of `FeatureCacheConfig`.
        skip_nonfinite: so many steps of a run may be left out because loss or gradient is not
            finite; one more stops it. With 0 the first one does.
        grad_spike: name the records of a step whose gradient norm is so many times the usual one;
            null: never.
        profile: write a trace of a few early steps, which Chrome and Perfetto show.
        dist_warn_seconds: when a process has waited so long for others, say who waits for whom.
        dist_timeout_minutes: and when it has waited so long, end the job.
    """

    task: str = "image_text_pretrain"
    runner: str = "runner_base"

    # length and schedule
    max_epoch: int = 1
    max_steps: int | None = None
    steps_per_epoch: int | None = None
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
    feature_cache: FeatureCacheConfig | None = None

    # when to look and what to keep
    log_freq: int = 50
    eval_freq: int = 1
    eval_every_steps: int | None = None
    eval_at_start: bool = False
    save_freq: int = 1
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    save_async: bool = True
    keep_last: int = 1
    monitor: str | None = None
    monitor_mode: str = "auto"
    report: bool = True
    tensorboard: bool = True
    output_dir: str = "output"
    evaluate: bool = False
    resume: str | None = None

    # health
    skip_nonfinite: int = 0
    grad_spike: float | None = 10.0
    profile: bool = False

    # machine
    device: str = "auto"
    precision: str = "auto"
    strategy: str = "auto"
    activation_checkpointing: str = "none"
    compile: bool = False
    compile_mode: str = "default"
    seed: int = 42
    find_unused_parameters: bool = False
    dist_warn_seconds: int = 60
    dist_timeout_minutes: int = 30

    def check(self) -> None:
        """Raise ConfigError naming the first number that cannot be."""
        check_bounds("run", self, dict.fromkeys(_COUNTS, (1, None)))
        check_bounds("run", self, dict.fromkeys(_RATES, (0, None)))
        check_bounds("run", self, dict.fromkeys(("beta1", "beta2"), (0, 0.999999)))
        check_bounds("run", self, {"grad_spike": (1, None)})
        for key, known in _CHOICES.items():
            check_choice(f"run.{key}", getattr(self, key), known)
        if self.feature_cache is not None:
            self.feature_cache.check()


_CHOICES = {
    "strategy": ("auto", "single", "ddp", "fsdp"),
    "activation_checkpointing": ("none", "recompute", "offload"),
    "compile_mode": ("default", "reduce-overhead", "max-autotune"),
}
_COUNTS = (
    *("max_epoch", "max_steps", "steps_per_epoch", "accum_grad_iters"),
    *("batch_size_train", "batch_size_eval", "keep_last", "dist_warn_seconds"),
    "dist_timeout_minutes",
)
_RATES = (
    *("init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate", "lr_layer_decay"),
    *("weight_decay", "clip_grad_norm", "num_workers", "log_freq", "eval_freq", "save_freq"),
    *("eval_every_steps", "save_every_steps", "save_every_minutes", "skip_nonfinite", "seed"),
)
