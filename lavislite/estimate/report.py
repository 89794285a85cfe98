"""An estimate for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lavislite.estimate.estimate import Estimate, Way
from lavislite.estimate.memory import GIB

_ASSUMED = (
    "memory: the worst moment of a training step; evaluation and generation are not looked at",
    "reserve: assumed for CUDA, NCCL and fragments",
    "texts: 12 words a caption, 8 a question, 2 an answer; the longest of a batch as the recipe "
    "allows",
    "largest batch: per GPU, by a straight line through two batch sizes",
)


def lines(found: Estimate) -> Iterator[str]:
    """The table and what has to be known about it."""
    named = ", ".join(f"{part} {name}" for part, name in found.towers.items())
    yield f"{found.arch}: {named}; {found.precision}"
    yield ""
    yield from _table(["", "parameters", "trained"], _parameters(found))
    yield ""
    accumulated = f" x {found.accumulate} micro-batches" if found.accumulate > 1 else ""
    on = f"{found.gpus} GPUs" if found.gpus > 1 else "1 GPU"
    yield f"Batch: {found.batch} x {on}{accumulated} = {found.whole_batch:,} samples"
    each = {part: _short(v / found.batch / 1e9) for part, v in found.step.flops.items()}
    parts = ", ".join(f"{part} {gflop}" for part, gflop in each.items())
    total = _short(found.step.all_flops / found.batch / 1e9)
    yield f"Operations: {total} GFLOP a sample ({parts})"
    yield ""
    gpu = found.gpu
    yield f"GiB per GPU, of {gpu.memory_gib:g} ({gpu.name}):"
    yield from _table(_COLUMNS, [_row(way) for way in found.ways])
    yield "The recipe asks for " + ", ".join(found.asked)
    yield ""
    yield _length(found)
    yield from (f"- {note}" for note in (*found.notes, *_ASSUMED))


_HELD = ("weights", "gradients", "optimizer", "activations", "gathered", "reserve")
_COLUMNS = [
    *("strategy", "checkpointing", *_HELD, "total", "fits", "largest batch"),
    *("s/step", "hours"),
]


def _row(way: Way) -> list[str]:
    held = [_gib(getattr(way.memory, name)) for name in _HELD]
    return [
        way.strategy,
        way.checkpointing,
        *held,
        _gib(way.memory.total),
        "yes" if way.fits else "no",
        str(way.largest),
        _short(way.seconds),
        _hours(way.hours),
    ]


def _hours(hours: float | None) -> str:
    return "?" if hours is None else _short(hours)


def _short(number: float) -> str:
    """Two or three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size else "-"


def _length(found: Estimate) -> str:
    speed = f"{found.mfu:.0%} of {found.gpu.tflops:g} TFLOP/s"
    length = "unknown length" if found.steps is None else f"{found.steps:,} steps"
    return f"Time: {length} at {speed}, computation alone (no loading, no waiting for others)"


def _parameters(found: Estimate) -> list[list[str]]:
    counts = found.sizes.parameters
    total = tuple(sum(pair[k] for pair in counts.values()) for k in (0, 1))
    return [[part, f"{n:,}", f"{t:,}"] for part, (n, t) in {**counts, "total": total}.items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    texts = [not any(ch.isdigit() for row in rows for ch in row[k]) for k in range(len(head))]
    for row in (head, *rows):
        cells = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, texts, strict=True)
        )
        yield "  ".join(cells).rstrip()
