"""Which archives a configuration means: paths, URLs, and patterns of them."""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import cache_dir
from lavislite.datasets.remote import Unreachable, is_remote, matching

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def archives(entry: Any, where: str) -> list[Path | str]:
    """The archives of an entry, a pattern or a list of them: local files as paths, others as URLs.

    Args:
        where: names the entry in messages.

    Raises:
        ConfigError: something else than paths, URLs and patterns.
        DataError: local archives that are not there; a pattern of URLs that finds nothing.
    """
    patterns = entry if isinstance(entry, list) else [entry]
    found = [name for pattern in patterns for name in _meant(pattern, where)]
    if not found:
        raise ConfigError(f"{where}: expected at least one tar archive, saw an empty list")
    return found


def _meant(pattern: Any, where: str) -> list[Path | str]:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{where}: expected tar archives or a pattern of them, saw {pattern!r}")
    if pattern.startswith("pipe:"):
        raise ConfigError(
            f"{where}: {pattern} is a command. Archives are read in any order, which needs paths "
            "or URLs, such as s3://bucket/{00000..00099}.tar"
        )
    if not is_remote(pattern):
        return list(_local(pattern, where))
    found: list[Path | str] = []
    for url in expand_braces(pattern):
        found += _listed(url, where) if "*" in url else [url]
    return found


def _listed(pattern: str, where: str) -> list[str]:
    try:
        found = matching(pattern)
    except Unreachable as error:
        raise DataError(f"{where}: {error}.") from error
    if not found:
        raise DataError(f"{where}: nothing matches {pattern}.")
    return found


def _local(pattern: str, where: str) -> list[Path]:
    if pattern.startswith("file://"):
        pattern = urllib.request.url2pathname(urllib.parse.urlsplit(pattern).path)
    wanted = list(expand_braces(pattern))
    for root in ("", str(cache_dir())):
        found = [_files(os.path.join(root, Path(part).expanduser())) for part in wanted]  # noqa: PTH118
        if any(found):
            break
    missing = [part for part, files in zip(wanted, found, strict=True) if not files]
    if missing:
        also = "" if Path(pattern).is_absolute() else f" (neither here nor in {cache_dir()})"
        raise DataError(
            f"{where}: {len(missing)} of {len(wanted)} archives of {pattern} do not exist{also}, "
            f"the first is {missing[0]}. A pattern with * takes those that are there."
        )
    return [file for files in found for file in files]


def _files(pattern: str) -> list[Path]:
    if glob.has_magic(pattern):
        return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    path = Path(pattern)
    if path.is_dir():
        raise DataError(f"{path} is a folder; tar archives are expected, such as {path}/*.tar")
    return [path] if path.is_file() else []


def expand_braces(pattern: str) -> Iterator[str]:
    """``a{0..2}{x,y}`` -> a0x, a0y, a1x, ...; numbers are as wide as the first one is written."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(match[1])
    if bounds is None:
        parts = match[1].split(",")
    else:
        low, high, width = int(bounds[1]), int(bounds[2]), len(bounds[1])
        parts = [f"{n:0{width}d}" for n in range(low, high + 1)]
    for part in parts:
        for rest in expand_braces(pattern[match.end() :]):
            yield pattern[: match.start()] + part + rest
