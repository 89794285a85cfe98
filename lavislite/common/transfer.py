"""Downloads that resume, and local paths for whatever a configuration names."""

from __future__ import annotations

import functools
import hashlib
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavislite.common.errors import UserError
from lavislite.common.hub import hub_trouble
from lavislite.common.io import atomic_write_text, cache_dir, file_lock, require_path
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean

logger = get_logger(__name__)

_SCHEMES = ("file:", "http:", "https:", "hf:", "s3:", "last_run:")
_CHUNK = 1 << 20
_ATTEMPTS = 5


def fetch(
    url_or_path: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Path:
    """A local path for `url_or_path`: a local path as it is; a URL downloaded once into the cache.

    ``http(s)`` downloads are locked across processes, resume where they broke off, and appear under
    their final name only when complete. ``file://`` is opened in place, ``hf://org/name[/file]``
    goes through the hub's own cache, other schemes (``s3://`` ...) through iopath.

    Raises:
        UserError: no such file, no connection, or the checksum differs.
    """
    text = str(url_or_path)
    scheme = urllib.parse.urlsplit(text).scheme
    if len(scheme) <= 1:  # none, or a Windows drive
        path = require_path(text)
    elif scheme == "file":
        path = require_path(urllib.request.url2pathname(urllib.parse.urlsplit(text).path))
    elif scheme in ("http", "https"):
        return download(text, cached_path(text), sha256=sha256, md5=md5, progress=progress)
    elif scheme == "hf":
        path = _from_hub(text)
    else:
        path = _from_iopath(text)
    for kind, expected in _given(sha256, md5).items():
        check_sum(path, kind, expected, text)
    return path


def cached_path(url: str) -> Path:
    """Where `fetch` keeps the download of `url`, whether it is there or not."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "index"
    return cache_dir() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:10] / name


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Path:
    """`url` downloaded to `path`, unless a checked file is there: locked, resumed, moved in whole.

    Raises:
        UserError: no connection, the server refuses, or a checksum differs (the file is removed).
    """
    expected = _given(sha256, md5)
    with file_lock(_beside(path, "lock")):
        if not path.exists():
            part = _beside(path, "part")
            _download_with_retries(url, part, path, progress)
            _check_sums(part, path, expected, url)
            part.replace(path)
        else:
            _check_sums(path, path, expected, url)
    return path


def picture_name(row: int, url: str) -> str:
    """The file of a picture that a list names: its row, from 0, and the URL's checksum."""
    return f"{row}_{zlib.crc32(url.encode('utf-8', 'surrogatepass'))}.jpg"


def _given(sha256: str | None, md5: str | None) -> dict[str, str]:
    return {kind: value for kind, value in (("sha256", sha256), ("md5", md5)) if value}


def _check_sums(file: Path, path: Path, expected: dict[str, str], source: str) -> None:
    """`check_sum` of `file`, once: what was checked is written down beside `path`."""
    for kind, value in expected.items():
        verified = _beside(path, kind)
        if file == path and verified.exists() and verified.read_text() == value:
            continue
        check_sum(file, kind, value, source, remove=True)
        atomic_write_text(verified, value)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def open_url(url: str, headers: dict[str, str], timeout: float) -> Any:
    """The server's response; only http and https are spoken, after a redirection too."""
    request = urllib.request.Request(url, headers={"User-Agent": "lavislite", **headers})
    return _opener().open(request, timeout=timeout)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()  # build_opener would add ftp:, file: and data:
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _download_with_retries(url: str, part: Path, path: Path, progress: bool) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _download_some(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise _no_download(
                    url, path, f"the server says {error.code} {error.reason}"
                ) from error
            reason: Exception = error
        except (OSError, EOFError) as error:  # refused, reset, timed out, cut short
            cause = getattr(error, "reason", None)
            if isinstance(cause, socket.gaierror) and before == 0:
                host = urllib.parse.urlsplit(url).hostname
                raise _no_download(url, path, f"no connection to {host}") from error
            reason = cause if isinstance(cause, OSError) else error
        moved = part.exists() and part.stat().st_size > before
        failures = 1 if moved else failures + 1  # a slow line may break often, as long as it moves
        if failures >= _ATTEMPTS:
            raise _no_download(url, path, str(reason)) from reason
        logger.info("download of %s broke off (%s); trying again", url, reason)
        time.sleep(min(0.25 * 2**failures, 10.0))


def _no_download(url: str, path: Path, reason: str) -> UserError:
    return UserError(
        f"Cannot download {url}: {reason}. Without a network: put the file at {path} by hand, or "
        "give a local path instead of the URL."
    )


def _download_some(url: str, part: Path, progress: bool) -> None:
    """Append to `part` what is still missing of `url`; EOFError when the connection ends early."""
    import http.client

    stamp = part.with_name(part.name + ".etag")  # which version of the file `part` belongs to
    have = part.stat().st_size if part.exists() and stamp.exists() else 0
    headers = {}
    if have:
        headers = {"Range": f"bytes={have}-", "If-Range": stamp.read_text(encoding="utf-8")}
    try:
        response = open_url(url, headers, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            stamp.unlink()  # it was complete already
            return
        part.unlink()
        raise EOFError("the file on the server has changed") from error
    with response:
        if response.status != 206:
            have = 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # If-Range wants a strong validator
            stamp.write_text(version, encoding="utf-8")
        else:
            stamp.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file, _bar(part, have, total, progress) as bar:
            try:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar(len(chunk))
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise EOFError("the connection ended early") from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise EOFError(f"the connection ended after {size} of {total} bytes")
    stamp.unlink(missing_ok=True)


@contextmanager
def _bar(
    part: Path, have: int, total: int | None, progress: bool
) -> Iterator[Callable[[int], Any]]:
    import sys

    if not (progress and sys.stderr.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True) as bar:
        yield bar.update


def check_sum(path: Path, kind: str, expected: str, source: str, remove: bool = False) -> None:
    """Raise UserError unless the file has this checksum; `kind` is "sha256" or "md5"."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected.lower():
        if remove:
            path.unlink()
        name = {"sha256": "SHA-256", "md5": "MD5"}[kind]
        raise UserError(
            f"{source}: expected {name} {expected.lower()}, got {digest.hexdigest()}: "
            "the file is damaged or not the one meant."
        )


def _from_hub(url: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = url.removeprefix("hf://").strip("/").split("/", 2)
    if len(parts) < 2:
        raise UserError(f"{url}: expected hf://organisation/name or hf://organisation/name/file")
    repo = "/".join(parts[:2])
    trouble = hub_trouble()
    try:
        if len(parts) == 3:
            return Path(hf_hub_download(repo, parts[2]))
        return Path(snapshot_download(repo))
    except (OSError, ValueError) as error:  # the hub's errors are kinds of these
        reason = f"not in the Hugging Face cache, and {trouble}" if trouble else str(error)
        raise UserError(f"Cannot fetch {url}: {reason}") from error


def _from_iopath(url: str) -> Path:
    from iopath.common.file_io import PathManager
    from iopath.common.s3 import S3PathHandler

    try:
        manager = PathManager()
        manager.set_strict_kwargs_checking(False)
        manager.register_handler(S3PathHandler())
        return Path(manager.get_local_path(url))
    except (OSError, ValueError, ImportError) as error:
        scheme = urllib.parse.urlsplit(url).scheme
        near = did_you_mean(f"{scheme}:", _SCHEMES) if f"{scheme}:" not in _SCHEMES else ""
        raise UserError(f"Cannot fetch {url}: {error}.{near}") from error
