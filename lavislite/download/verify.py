"""Is everything where the data sets look for it, and if not, what would help?"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

from lavislite.download.description import Entry, Expected, File, Triples


def expected_of(entry: Entry) -> tuple[Expected, ...]:
    """What must be there once `entry` is done; what is one file need not say it of itself."""
    if isinstance(entry, File) and entry.unpack == "none" and not entry.expect:
        return (Expected(entry.path),)
    if isinstance(entry, Triples):
        return (Expected(entry.writes),)
    return entry.expect


def complete(entry: Entry, root: Path) -> bool:
    """Whether all that `entry` promises is there. False if it promises nothing."""
    expected = expected_of(entry)
    return bool(expected) and all(missing(one, root) is None for one in expected)


def missing(expected: Expected, root: Path) -> str | None:
    """One line that says what is missing and the likely way out; None if nothing is."""
    path = root / expected.path
    if expected.count is None:
        return None if path.exists() else f"{path} is missing.{_way_out(expected, root)}"
    found = count_files(path, expected.pattern)
    if found >= expected.count:
        return None
    what = "files" if expected.pattern == "*" else f"files {expected.pattern}"
    have = f"has {found:,}" if path.is_dir() else "is missing, with"
    wanted = f"of {expected.count:,} {what}" if path.is_dir() else f"its {expected.count:,} {what}"
    return f"{path} {have} {wanted}.{_way_out(expected, root)}"


def count_files(folder: Path, pattern: str) -> int:
    """How many names in `folder` match; hidden ones are not counted."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(
            not entry.name.startswith(".") and fnmatch(entry.name, pattern) for entry in entries
        )


def _way_out(expected: Expected, root: Path) -> str:
    elsewhere = [other for other in expected.misplaced if _has(root / other, expected)]
    if not elsewhere:
        return ""
    if expected.count is None:
        return f" There is {root / elsewhere[0]}: move it to {expected.path}."
    places = " and ".join(f"{root / other}" for other in elsewhere)
    return f" There are such files in {places}: move them into {root / expected.path}."


def _has(path: Path, expected: Expected) -> bool:
    return path.exists() if expected.count is None else count_files(path, expected.pattern) > 0
