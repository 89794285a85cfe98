"""What the runner hands to a task for an evaluation, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class EvalContext:
    """Where and how to evaluate.

    Attributes:
        device: where model and batches live.
        autocast: makes the context for the run's precision: ``with ctx.autocast(): model(...)``.
        batch_size: samples per batch and process.
        num_workers: worker processes for loading.
        limit_batches: stop after so many batches (dry run); None means the whole split.
        progress: show a progress bar.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    batch_size: int = 64
    num_workers: int = 0
    limit_batches: int | None = None
    progress: bool = False


@dataclass(frozen=True)
class EvalResult:
    """Metrics by name, and one row per sample with what was predicted.

    `files` are further results to keep beside the rows, by name: content that JSON can hold, such
    as what an evaluation server asks for.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
