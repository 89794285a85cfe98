"""The names that two libraries give to the same tensors: one table, read in either direction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

Table = Sequence[tuple[str, str]]


def rename(name: str, table: Table, *, back: bool = False) -> str | None:
    """`name` as the other side of `table` calls it; None when no row speaks of it.

    A row is a pair of names, ours first. ``{i}`` stands for a number, the same on both sides. A
    name that ends in ``.`` or ``_`` is the beginning of many. The first row that fits counts.

    Args:
        back: read the table from right to left.
    """
    for ours, theirs in table:
        source, target = (theirs, ours) if back else (ours, theirs)
        found = _pattern(source).match(name)
        if found:
            return target.format(**found.groupdict()) + name[found.end() :]
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    text = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template))
    return re.compile(text if template.endswith((".", "_")) else text + "$")
