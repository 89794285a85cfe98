"""Whether a cache may be written: is there room, and is it wanted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavislite.common import distributed
from lavislite.common.errors import UserError

GB = 10**9
_SMALLER = (
    "Fewer views or dtype: int8 make it smaller, run.feature_cache.folder puts it elsewhere, and "
    "run.feature_cache=null does without it."
)


@dataclass(frozen=True)
class Need:
    """What a store takes.

    Attributes:
        whole: its bytes when it is complete.
        due: those that are to be written now.
        room: how much less will be free.
    """

    folder: Path
    whole: int
    due: int
    room: int


def shown(size: float) -> str:
    """Bytes as people read them: 13.5 GB."""
    for unit, name in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def agree(max_gb: float, needs: Sequence[Need], *, looks: bool) -> None:
    """Go on, or not, before anything is written; all processes call it.

    Args:
        looks: this process looks at the disk; several do where they have folders of their own.

    Raises:
        UserError: too little room, or more than `max_gb` is due and nobody agreed.
    """
    problem = _no_room(needs) if looks else None
    if problem is None and distributed.is_main():
        problem = _too_much(max_gb, needs)
    found = next(filter(None, distributed.all_gather_objects(problem)), None)
    if found is not None:
        error = UserError(found)
        error.shared = True  # type: ignore[attr-defined]
        raise error


def _no_room(needs: Sequence[Need]) -> str | None:
    room, folder = sum(need.room for need in needs), needs[0].folder.parent
    free = shutil.disk_usage(folder).free
    if room <= free:
        return None
    return (
        f"run.feature_cache needs {shown(room)} more in {folder}, where {shown(free)} are free. "
        f"{_SMALLER}"
    )


def _too_much(max_gb: float, needs: Sequence[Need]) -> str | None:
    due, folder = sum(need.due for need in needs), needs[0].folder.parent
    if due <= max_gb * GB:
        return None
    writes = f"run.feature_cache writes {shown(due)} to {folder}"
    if sys.stdin is None or not sys.stdin.isatty():
        return f"{writes}; max_gb allows {max_gb:g} GB. Raise it if that is meant. {_SMALLER}"
    try:
        agreed = input(f"{writes}. Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        agreed = False
    return None if agreed else "Nothing was computed."
