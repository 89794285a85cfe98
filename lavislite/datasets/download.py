"""Annotation files that may have to be downloaded first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import cache_dir, fetch
from lavislite.common.registry import did_you_mean

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
            UserError: the download fails.
            DataError: its checksum is wrong.
        """
        if self.path is not None:
            found = locate(self.path)
            if found.exists() or self.url is None:
                return found
        assert self.url is not None
        file = fetch(self.url, sha256=self.sha256)
        if self.md5 is not None:
            _check_md5(file, self.md5, self.url)
        return file


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


def _check_md5(file: Path, expected: str, url: str) -> None:
    """Raise DataError unless the file has this MD5; once checked, it is not read again."""
    stamp = file.with_name(f"{file.name}.md5")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == expected:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        file.unlink(missing_ok=True)
        raise DataError(
            f"{url}: expected MD5 {expected}, got {digest.hexdigest()}: the download is damaged or "
            "the file has changed."
        )
    stamp.write_text(expected, encoding="utf-8")
