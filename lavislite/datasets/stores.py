"""How to speak to web servers, to what fsspec knows (s3, gs, hf, ...), and to iopath's handlers."""

from __future__ import annotations

import urllib.error
import urllib.parse
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.transfer import open_url

_TIMEOUT = 60.0  # seconds of silence
_PIECE = 1 << 20
_REQUEST = 32 << 20  # of a store that is asked for one range after the other
_BUSY = (408, 425, 429)
_VERSIONS = ("ETag", "etag", "generation", "LastModified", "last_modified", "mtime", "created")


class Refused(Exception):
    """An answer that will be the same the next time: no such file, no permission, another file."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file somewhere else, as it was when it was looked up.

    Attributes:
        size: bytes.
        version: other when the content is: an ETag or a time; "" if the store does not tell.
    """

    url: str
    size: int
    version: str


Pieces = Generator[tuple[int, bytes], None, None]


class Store(Protocol):
    """All raise `Refused`, or an OSError, EOFError or HTTPException for what may pass."""

    def look(self, url: str) -> tuple[int, str]:
        """Size and version."""

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        """`length` bytes from `start` on."""

    def pieces(self, file: RemoteFile, start: int) -> Pieces:
        """From `start` on, or from 0 where the store cannot do that: (place, bytes)."""

    def matching(self, pattern: str) -> list[str]:
        """The URLs that a pattern with ``*`` stands for, sorted."""


def store_of(url: str) -> Store:
    """What reads `url`."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("http", "https"):
        return _Web()
    import fsspec

    return _Fsspec() if scheme in fsspec.available_protocols() else _Iopath()


# --------------------------------------------------------------------------------------------- web


class _Web:
    """Needs no more than GET, so that signed URLs work too."""

    def look(self, url: str) -> tuple[int, str]:
        try:
            with self._open(url, "bytes=0-0") as answer:
                return _size(answer), _version(answer)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # not even one byte
                return 0, ""
            raise

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        with self._open(file.url, f"bytes={start}-{start + length - 1}") as answer:
            if answer.status != 206:
                raise DataError(
                    f"{file.url}: the server gives out whole files only. Set shard_cache_gb of "
                    "this dataset, so that archives are fetched as a whole."
                )
            _check_same(file, answer)
            content: bytes = answer.read(length)
        if len(content) != length:
            raise EOFError(f"{len(content)} of {length} bytes came")
        return content

    def pieces(self, file: RemoteFile, start: int) -> Pieces:
        with self._open(file.url, f"bytes={start}-" if start else None) as answer:
            _check_same(file, answer)
            at = start if answer.status == 206 else 0
            while piece := answer.read(_PIECE):
                yield at, piece
                at += len(piece)

    def matching(self, pattern: str) -> list[str]:
        raise Refused(
            f"what {pattern} stands for a web server does not say. Number the files, as in "
            "https://host/{00000..00099}.tar, or list them"
        )

    @contextmanager
    def _open(self, url: str, byte_range: str | None) -> Iterator[Any]:
        try:
            answer = open_url(url, {"Range": byte_range} if byte_range else {}, _TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if 400 <= error.code < 500 and error.code not in (*_BUSY, 416):
                raise Refused(f"the server says {error.code} {error.reason}") from error
            raise
        with answer:
            yield answer


def _size(answer: Any) -> int:
    if answer.status == 206:
        size = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
    else:
        size = answer.headers.get("Content-Length") or ""
    if not size.isdigit():
        raise Refused("the server does not say how large it is")
    return int(size)


def _version(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _check_same(file: RemoteFile, answer: Any) -> None:
    seen = _size(answer), _version(answer)
    if seen != (file.size, file.version):
        raise Refused(
            f"it has changed since it was indexed ({file.size} bytes, {file.version}; now "
            f"{seen[0]} bytes, {seen[1]}). Start again, and it is indexed anew"
        )


# ------------------------------------------------------------------------------------------ fsspec


class _Fsspec:
    """File systems are asked for each time: fsspec keeps them, per process, and knows of forks."""

    def look(self, url: str) -> tuple[int, str]:
        with _plain_errors():
            system, path = _system(url)
            about = system.info(path)
        if about.get("size") is None:
            raise Refused("the store does not say how large it is")
        version = next((str(about[key]) for key in _VERSIONS if about.get(key)), "")
        return int(about["size"]), version

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        with _plain_errors():
            system, path = _system(file.url)
            content = bytes(system.cat_file(path, start=start, end=start + length))
        if len(content) != length:
            raise EOFError(f"{len(content)} of {length} bytes came")
        return content

    def pieces(self, file: RemoteFile, start: int) -> Pieces:
        if start == 0 and (seen := self.look(file.url)) != (file.size, file.version):
            raise Refused(f"it has changed since it was indexed (it has {seen[0]} bytes now)")
        while start < file.size:
            piece = self.read(file, start, min(_REQUEST, file.size - start))
            yield start, piece
            start += len(piece)

    def matching(self, pattern: str) -> list[str]:
        with _plain_errors():
            system, path = _system(pattern)
            return [system.unstrip_protocol(name) for name in sorted(system.glob(path))]


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        scheme = urllib.parse.urlsplit(url).scheme
        how = f"{error}"
        if scheme in ("s3", "s3a"):
            how = 'install s3fs: pip install -e ".[s3]" (or pip install s3fs)'
        raise ConfigError(f"{url}: for {scheme}:// {how}") from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Every store has errors of its own; what is not known to be final may pass."""
    try:
        yield
    except (OSError, EOFError, ConfigError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise Refused(f"{type(error).__name__}: {error}") from error
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------------------------ iopath


class _Iopath:
    """What was registered with iopath's global path manager; it knows no versions."""

    def look(self, url: str) -> tuple[int, str]:
        with self._open(url) as file:
            return int(file.seek(0, 2)), ""

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        with self._open(file.url) as stream:
            stream.seek(start)
            content = bytes(stream.read(length))
        if len(content) != length:
            raise EOFError(f"{len(content)} of {length} bytes came")
        return content

    def pieces(self, file: RemoteFile, start: int) -> Pieces:
        with self._open(file.url) as stream:
            stream.seek(start)
            while piece := bytes(stream.read(_PIECE)):
                yield start, piece
                start += len(piece)

    def matching(self, pattern: str) -> list[str]:
        raise Refused(
            f"what {pattern} stands for is not known. Number the files, as in "
            "{00000..00099}.tar, or list them"
        )

    @contextmanager
    def _open(self, url: str) -> Iterator[Any]:
        from iopath.common.file_io import g_pathmgr

        with _plain_errors():
            if not g_pathmgr.exists(url):
                scheme = urllib.parse.urlsplit(url).scheme
                raise FileNotFoundError(
                    f"it does not exist, or nothing reads {scheme}://. Asked were fsspec and the "
                    "handlers registered with iopath's g_pathmgr"
                )
            with g_pathmgr.open(url, "rb") as file:
                yield file
