"""Annotation files that may have to be downloaded first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.io import cache_dir
from lavislite.common.registry import did_you_mean
from lavislite.common.transfer import fetch

_KEYS = ("path", "url", "md5", "sha256")


@dataclass(frozen=True)
class Source:
    """Where a file comes from: `path` when it is there, else `url`."""

    path: str | None = None
    url: str | None = None
    md5: str | None = None
    sha256: str | None = None

    def locate(self) -> Path:
        """The local file, downloaded if necessary. A `path` that does not exist is returned too.

        Raises:
            UserError: the download fails, or its checksum is wrong.
        """
        if self.path is not None:
            found = locate(self.path)
            if found.exists() or self.url is None:
                return found
        assert self.url is not None
        return fetch(self.url, sha256=self.sha256, md5=self.md5)


def sources(entry: Any, where: str) -> list[Source]:
    """The files of one `annotations:` entry: a path, a URL, ``{path, url, md5}``, or a list.

    Raises:
        ConfigError: anything else; `where` names the entry.
    """
    if isinstance(entry, list):
        if not entry:
            raise ConfigError(f"{where}: expected at least one file, saw an empty list")
        return [source for item in entry for source in sources(item, where)]
    if isinstance(entry, str) and entry:
        return [Source(url=entry) if "://" in entry else Source(path=entry)]
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a path, a URL or a list of them, saw {entry!r}")
    for key in entry:
        if key not in _KEYS:
            near = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"{where}.{key}: unknown key.{near} Known: {', '.join(_KEYS)}")
    if not entry.get("path") and not entry.get("url"):
        raise ConfigError(f"{where}: expected `path` or `url`, saw {dict(entry)!r}")
    return [Source(**entry)]


def locate(path: str | Path) -> Path:
    """`path` as seen from the working directory; if nothing is there, from the cache folder."""
    here = Path(path).expanduser()
    if here.is_absolute() or here.exists():
        return here
    cached = cache_dir() / here
    return cached if cached.exists() else here
