"""A trace of a few training steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lavislite.common import distributed
from lavislite.common.io import atomic_write, atomic_write_text
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

FIRST, STEPS = 3, 3  # steps 3, 4 and 5 after the start: the first ones set things up
_ROWS = 25


@contextmanager
def profiled(folder: Path, wanted: bool, device: torch.device) -> Iterator[Callable[[], None]]:
    """Surrounds the loop over the steps; what it gives is called after each of them.

    Every process writes ``rank<r>.json.gz``, a Chrome trace of its steps 3 to 5 (or of those that
    there are), with the data loading in between, and ``rank<r>.txt``, a table of the operators
    that took most of the time. Nothing of it changes a result.
    """
    if not wanted:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:  # its library reports the missing GPU as an error
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(
        activities=activities,
        schedule=schedule(wait=FIRST - 2, warmup=1, active=STEPS, repeat=1),
        on_trace_ready=lambda done: _write(done, folder, device),
        record_shapes=True,
        acc_events=True,  # there is but one cycle; otherwise it warns of losing the others
    ) as running:
        yield running.step


def _write(done: profile, folder: Path, device: torch.device) -> None:
    name = f"rank{distributed.rank()}"
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    text = done.key_averages().table(sort_by=key, row_limit=_ROWS, max_name_column_width=60)
    try:
        atomic_write(folder / f"{name}.json.gz", lambda p: done.export_chrome_trace(str(p)))
        atomic_write_text(folder / f"{name}.txt", text)
    except OSError as error:  # the training goes on; nothing of it depends on the trace
        logger.warning("The profile is not written: %s", error)
        return
    logger.info("Profile: %s/%s.json.gz (open it in ui.perfetto.dev) and .txt", folder, name)
