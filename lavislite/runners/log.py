"""What a run tells: ``log.jsonl``, TensorBoard, one line (or a progress bar) on the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.common import distributed
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger
from lavislite.runners.guard import Event, describe

logger = get_logger(__name__)


class Meter:
    """Running means that stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], keep: Tensor) -> None:
        """Count each scalar if `keep`, a boolean on the device; does not wait for the device."""
        count = keep.float()
        for name, value in values.items():
            term = torch.where(keep, value.detach().float(), 0.0)  # zero times NaN would be NaN
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._counts[name] = self._counts[name] + count if name in self._counts else count

    def read(self) -> dict[str, float]:
        """Means over everything kept and over all processes (NaN: nothing was); starts afresh."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = distributed.all_reduce_sum(means) / distributed.world_size()
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """CPU tensors for a checkpoint."""
        return {
            "sums": {name: x.cpu() for name, x in self._sums.items()},
            "counts": {name: x.cpu() for name, x in self._counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` returned, on `device`."""
        self._sums = {name: x.to(device) for name, x in state["sums"].items()}
        self._counts = {name: x.to(device) for name, x in state["counts"].items()}


class Stopwatch:
    """Time since the last reading: in all, and waiting for data.

    Args:
        device: what computes. A GPU still has work when the host begins to wait; only the time in
            which it has none counts.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self.restart()

    def restart(self, samples: int = 0) -> None:
        """Begin to count now, when this process has seen `samples`."""
        self._samples = samples
        self._start = time.perf_counter()
        self._waited = 0.0
        self._idle: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds the wait for data."""
        if self._on_gpu:
            done, go_on = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            done.record()
            yield
            go_on.record()
            self._idle.append((done, go_on))
            return
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Surrounds what is not training, such as an evaluation."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def read(self, samples: int) -> dict[str, float]:
        """``samples_per_second`` over all processes and ``data_wait`` as a fraction.

        The host waits for the GPU.

        Args:
            samples: how many this process has seen in all.
        """
        if self._idle:
            self._idle[-1][1].synchronize()
        waited = self._waited + sum(a.elapsed_time(b) for a, b in self._idle) / 1e3
        seconds = max(time.perf_counter() - self._start, 1e-9)
        new = (samples - self._samples) * distributed.world_size()
        found = {"samples_per_second": new / seconds, "data_wait": waited / seconds}
        self.restart(samples)
        return found


class RunLog:
    """Writes rows on the main process; on the others it does nothing.

    A row has an ``event`` (start, train, skip, spike, eval, end) and a ``step``; numbers that are
    not finite become null, so that every line is JSON.
    """

    def __init__(self, run_dir: Path, tensorboard: bool, total_steps: int) -> None:
        self.path = run_dir / "log.jsonl"
        self._on = distributed.is_main()
        self._began = time.perf_counter()
        self._total = total_steps
        self._writer = _tensorboard(run_dir) if tensorboard and self._on else None
        self._bar: Any = None

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self._on and self.path.exists() else 0

    def forget_after(self, step: int, length: int | None = None) -> None:
        """Drop the first row of a later step and all after it: a resumed run writes them again.

        Not each row by its own step: an event is told, and told again, after its time.

        Args:
            length: what lies beyond so many bytes is dropped as well.
        """
        if self._on and self.path.exists():
            lines = self.path.read_bytes()[:length].decode("utf-8").splitlines()
            kept = takewhile(lambda line: _step_of(line) <= step, lines)
            atomic_write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, event: str, step: int, row: Mapping[str, Any]) -> None:
        if not self._on:
            return
        seconds = round(time.perf_counter() - self._began, 3)
        line = json.dumps(_plain({"event": event, "step": step, **row, "seconds": seconds}))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._writer is not None and event not in ("skip", "spike"):
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def say(self, step: int, row: Mapping[str, float]) -> None:
        """One line on the terminal for a row of training."""
        if self._on:
            logger.info(train_line(step, self._total, row))

    def tell(self, events: Sequence[Event]) -> None:
        """Rows and warnings for what `FiniteGuard` noticed, after the row of training."""
        for event in events:
            facts = {"grad_norm": event.grad_norm, "usual_grad_norm": event.usual}
            self.write(event.kind, event.step, {**facts, "records": event.records})
            if self._on:
                logger.warning("%s", describe(event))

    def progress(self, step: int) -> None:
        """Advance the bar, where there is a terminal to show one."""
        if not (self._on and sys.stderr.isatty()):
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=step - 1, unit="step", dynamic_ncols=True)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def train_line(step: int, total: int, row: Mapping[str, float]) -> str:
    """``step 50/300  epoch 1.2  loss 3.21 (itc 1.10 itm 0.60 lm 1.51)  lr 1.0e-04  ...``"""
    parts = [
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in row.items()
        if name.startswith("loss_")
    ]
    inner = f" ({' '.join(parts)})" if parts else ""
    line = (
        f"step {step}/{total}  epoch {row['epoch']:.2f}  loss {row['loss']:.3f}{inner}  "
        f"lr {row['lr']:.1e}  grad {row['grad_norm']:.2f}  "
        f"{row['samples_per_second']:.0f} samples/s  data wait {row['data_wait']:.0%}  "
    )
    if "mfu" in row:  # without a peak to compare with, the number says little
        line += f"{row['tflops']:.0f} TFLOP/s ({row['mfu']:.0%})  "
    line += f"{row['memory_gb']:.1f} GB"
    return f"{line}  {row['skipped']:.0f} skipped" if row.get("skipped") else line


def metrics_text(
    step: int, metrics: Mapping[str, float], summary: list[list[str]], seconds: float
) -> str:
    """An evaluation for the eye: the task's table, or all metrics in one line if it has none."""
    title = f"step {step}, evaluated in {seconds:.1f} s"
    if not metrics:
        return f"{title}: no metrics"
    if summary:
        return f"{title}\n{table(summary)}"
    return f"{title}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def table(rows: list[list[str]]) -> str:
    """Rows of text in aligned columns; the first column to the left, numbers to the right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def versions() -> dict[str, str]:
    """What the numbers of this run depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("lavislite", "transformers", "timm", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _tensorboard(run_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed: no curves there. (pip install tensorboard)")
        return None
    return SummaryWriter(str(run_dir / "tensorboard"))


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut short by a crash
        return sys.maxsize


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
