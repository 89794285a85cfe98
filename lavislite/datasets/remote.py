"""Files on servers and in object stores: how large they are, parts of them, whole copies.

Failures that may pass are tried again, for about a minute altogether (time-outs not counted).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from lavislite.common.logging import get_logger
from lavislite.datasets.stores import Refused, RemoteFile, store_of

logger = get_logger(__name__)

T = TypeVar("T")

# What may be better the next time: no connection, a reset, silence, half an answer, a busy server.
_PASSING = (OSError, EOFError, HTTPException)
_ATTEMPTS = 8
_LONGEST = 20.0  # seconds between two of them


class Unreachable(Exception):
    """A remote file that cannot be read, however often it is tried."""


def is_remote(name: str) -> bool:
    """`name` is a URL of something that is not on this machine."""
    return "://" in name and not name.startswith("file://")


def look_up(url: str) -> RemoteFile:
    """What the store says about `url`.

    Raises:
        Unreachable: nothing, or that there is no such file.
        ConfigError: nothing is installed that speaks to such a store.
    """
    size, version = _persistently(lambda: store_of(url).look(url), url, attempts=_ATTEMPTS // 2)
    return RemoteFile(url, size, version)


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with ``*`` stands for, sorted.

    Raises:
        Unreachable, ConfigError: as `look_up`; or such a store has no list of its files.
    """
    return _persistently(lambda: store_of(pattern).matching(pattern), pattern, _ATTEMPTS // 2)


def read_range(file: RemoteFile, start: int, length: int) -> bytes:
    """`length` bytes from `start` on.

    Raises:
        Unreachable: they cannot be had.
        DataError: the server gives out whole files only.
    """
    store = store_of(file.url)
    return _persistently(lambda: store.read(file, start, length), file.url)


def fetch_whole(file: RemoteFile, path: Path) -> None:
    """Write the file's content into `path`, which is there already.

    Raises:
        Unreachable: it cannot be had.
        OSError: `path` cannot be written.
    """
    with path.open("r+b") as out:
        for start, piece in _pieces(file):
            out.seek(start)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def _pieces(file: RemoteFile) -> Iterator[tuple[int, bytes]]:
    """The content piece by piece, each with its place; goes on where a connection broke off."""
    have = most = failures = 0
    while True:
        try:
            with closing(store_of(file.url).pieces(file, have)) as pieces:
                for start, piece in pieces:
                    yield start, piece
                    have = start + len(piece)
            if have == file.size:
                return
            reason: Exception = EOFError(f"it ended after {have} of {file.size} bytes")
        except Refused as error:
            raise Unreachable(f"{file.url}: {error}") from error
        except _PASSING as error:
            reason = error
        # A slow line may break often, as long as it gets further.
        most, failures = max(most, have), 1 if have > most else failures + 1
        if failures >= _ATTEMPTS:
            raise Unreachable(f"{file.url}: {_words(reason)}") from reason
        _wait(failures, file.url, reason)


def _persistently(work: Callable[[], T], url: str, attempts: int = _ATTEMPTS) -> T:
    """The result of `work`, tried again when it fails in a way that may pass."""
    failures = 0
    while True:
        try:
            return work()
        except Refused as error:
            raise Unreachable(f"{url}: {error}") from error
        except _PASSING as error:
            failures += 1
            if failures >= attempts:
                raise Unreachable(f"{url}: {_words(error)}") from error
            _wait(failures, url, error)


def _wait(failures: int, url: str, reason: Exception) -> None:
    seconds = min(0.25 * 2**failures, _LONGEST)
    logger.info("%s: %s; trying again in %g s", url, _words(reason), seconds)
    time.sleep(seconds)


def _words(error: BaseException) -> str:
    cause = getattr(error, "reason", None)  # urllib wraps what happened
    if isinstance(cause, OSError):
        error = cause
    return f"{type(error).__name__}: {error}"
