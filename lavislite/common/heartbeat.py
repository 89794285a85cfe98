"""What this process is doing, and the sentence that says who waits for whom.

The main thread reports where it is (`at`), that it gets on (`tick`) and that it is inside an
exchange with the others (`waiting`): a few attribute writes. `common/watch.py` tells the others.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

LOADING = "loading data"
COMPUTING = "forward and backward"  # gradients are exchanged meanwhile: it may wait for the others
SAVING = "saving"
EVALUATING = "evaluating"


@dataclass(frozen=True)
class Beat:
    """Where a process is, as it says itself, and for how long it has not been heard of.

    Attributes:
        waits: it is inside an exchange with the others.
        still: seconds since it last got on.
        where: file and line of its main thread, once it has not got on for a while.
        silent: seconds since it was last heard of.
    """

    step: int = 0
    doing: str = "starting"
    waits: bool = False
    still: float = 0.0
    where: str = ""
    silent: float = 0.0


class Progress:
    """The main thread's reports; other threads read them."""

    def __init__(self) -> None:
        self.step, self.doing = 0, "starting"
        self.asked_to_stop = False  # a signal came: by itself, or because another process has died
        self._exchanges = 0
        self._moved = time.monotonic()

    def at(self, step: int, doing: str) -> None:
        """`step` optimizer steps are done; what happens now."""
        self.step, self.doing = step, doing
        self.tick()

    def tick(self) -> None:
        """It gets on: a batch of an evaluation is done, say."""
        self._moved = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds an exchange with the other processes."""
        self._exchanges += 1
        self.tick()
        try:
            yield
        finally:
            self._exchanges -= 1
            self.tick()

    @property
    def waits(self) -> bool:
        """Inside an exchange, or in a phase that may contain one."""
        return self._exchanges > 0 or self.doing == COMPUTING

    def still(self) -> float:
        """Seconds since it last got on."""
        return time.monotonic() - self._moved

    def beat(self, locate_after: float) -> Beat:
        """The present state; with the line of code when it stands still for `locate_after` s."""
        still = self.still()
        where = main_thread_line() if still >= locate_after else ""
        return Beat(self.step, self.doing, self._exchanges > 0, round(still, 1), where)


PROGRESS = Progress()
at, tick, waiting = PROGRESS.at, PROGRESS.tick, PROGRESS.waiting


def main_thread_line() -> str:
    """``file.py:12``: what the main thread executes, outside Python's and other libraries."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    library = str(Path(os.__file__).parent)
    while frame is not None:
        path = frame.f_code.co_filename
        if "site-packages" not in path and not path.startswith((library, "<")):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# ------------------------------------------------------------------------------------ in words


def explain(beats: Mapping[int, Beat], silent_after: float) -> str:
    """Who waits for whom: ``ranks 0, 2-3 wait at step 120 (saving) ...; rank 1 is at step 119 ...``

    Waited for are those that are silent or busy with something of their own; else those that are
    furthest behind. Computing is something of one's own, but gradients are exchanged meanwhile: of
    those that compute at the same step nobody knows who waits, and the line of code must tell.
    """
    silent = {r for r, b in beats.items() if b.silent >= silent_after}
    busy = {r for r, b in beats.items() if not b.waits and b.doing != COMPUTING}
    blamed = silent | busy
    if not blamed:
        computing = {r: b.step for r, b in beats.items() if not b.waits}
        last = min(computing.values(), default=0)
        if len(computing) < len(beats) or len(set(computing.values())) > 1:
            blamed = {r for r, step in computing.items() if step == last}
    waiting = {r for r, b in beats.items() if r not in blamed and (blamed or b.waits)}
    groups = _groups(beats, silent)
    groups.sort(key=lambda group: (group[0] not in waiting, group[0]))
    parts = [_place(group, beats[group[0]], waiting, silent) for group in groups]
    if all(b.waits for b in beats.values()) and not silent:
        parts.append("all of them wait: not in the same exchange, or for the network")
    return "; ".join(parts)


def _groups(beats: Mapping[int, Beat], silent: set[int]) -> list[list[int]]:
    """Ranks that are at the same place, together; one that is silent is alone."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for r in sorted(beats):
        beat, alone = beats[r], r if r in silent else -1
        place = (beat.step, beat.doing, beat.waits, beat.where, alone)
        places.setdefault(place, []).append(r)
    return list(places.values())


def _place(group: Sequence[int], beat: Beat, waiting: set[int], silent: set[int]) -> str:
    who, several = ranks(group), len(group) > 1
    where = f"step {beat.step} ({beat.doing}{', ' + beat.where if beat.where else ''})"
    if group[0] in silent:
        return f"{who} has not been heard of for {beat.silent:.0f} s, last at {where}"
    if group[0] in waiting:
        return f"{who} {'wait' if several else 'waits'} at {where} since {beat.still:.0f} s"
    return f"{who} {'are' if several else 'is'} at {where} since {beat.still:.0f} s"


def ranks(numbers: Sequence[int]) -> str:
    """``rank 3`` or ``ranks 0, 2-5``; `numbers` ascend."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank {text}" if len(numbers) == 1 else f"ranks {text}"
