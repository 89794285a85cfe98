"""Unpacking archives that come from elsewhere: files only, and only into the folder meant."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lavislite.common.errors import DataError

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # zipfile: encrypted
    NotImplementedError,  # zipfile: a compression it does not know
)


class DamagedArchive(DataError):
    """The archive cannot be read; fetching it again may help."""


def unpack(
    archive: Path, into: Path, kind: str, below: str | None = None, only: Sequence[str] = ()
) -> int:
    """Unpack the files of a "zip" or "tar" archive into the folder `into`; returns their number.

    `below`: only what lies below the folder of that name, without the folders above. `only`: only
    files whose names match one of these shell patterns. All names are checked before the first file
    is written. Each file appears whole or not at all, and one that is there with the right size is
    left alone, so an interrupted call is simply made again.

    Raises:
        DataError: a name leads out of `into`, a member is a link or a device, or there is less
            disk than it takes.
        DamagedArchive: it cannot be read.
    """
    try:
        with _opened(archive, kind) as (members, read):
            placed = [(m, t, s) for m, name, s in members if (t := _target(name, below, archive))]
            files = [one for one in placed if _matches(one[1].name, only)]
            if not files:
                found = f" {' or '.join(only)}" if only else ""
                found += f" below a folder '{below}'" if below else ""
                raise DataError(f"{archive}: there are no files{found} in it")
            _check_disk(into, sum(size for _, _, size in files), archive)
            for member, target, size in _progress(files, archive.name):
                _extract(read, member, into / target, size)
    except _DAMAGED as error:
        raise DamagedArchive(f"{archive}: cannot be unpacked: {error}") from error
    return len(files)


@contextmanager
def _opened(archive: Path, kind: str) -> Iterator[tuple[Any, Callable[[Any], IO[bytes]]]]:
    """The archive's files as (member, name, size), and a function that opens a member."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as zipped:
            infos = [info for info in zipped.infolist() if not info.is_dir()]
            for info in infos:
                mode = stat.S_IFMT(info.external_attr >> 16)
                if mode not in (0, stat.S_IFREG):
                    raise _not_a_file(archive, info.filename)
            yield [(info, info.filename, info.file_size) for info in infos], zipped.open
    else:
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if not member.isdir()]
            for member in members:
                if not member.isreg():
                    raise _not_a_file(archive, member.name)
            named = [(member, member.name, member.size) for member in members]
            yield named, lambda member: _tar_file(tar, member)
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass  # the checksum of what is compressed stands at its very end


def _tar_file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = tar.extractfile(member)
    assert opened is not None  # only None for what is not a file
    return opened


def _not_a_file(archive: Path, name: str) -> DataError:
    return DataError(f"{archive}: {name!r} is a link or a device, not a file; nothing was unpacked")


def _target(name: str, below: str | None, archive: Path) -> PurePosixPath | None:
    """Where a member goes, below the folder; None if it is not wanted."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:|.*\x00", name):
        raise DataError(
            f"{archive}: {name!r} leads out of the folder it is unpacked into; nothing was unpacked"
        )
    parts = path.parts
    if "__MACOSX" in parts or not parts:
        return None
    if below is not None:
        if below not in parts[:-1]:
            return None
        parts = parts[parts.index(below) + 1 :]
    return PurePosixPath(*parts)


def _matches(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch(name, pattern) for pattern in only)


def _extract(read: Callable[[Any], IO[bytes]], member: Any, target: Path, size: int) -> None:
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with read(member) as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    part.replace(target)


def _check_disk(into: Path, size: int, archive: Path) -> None:
    free = free_disk(into)
    if size > free:
        raise DataError(
            f"{archive}: unpacked it takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            f"at {into}; nothing was unpacked"
        )


def free_disk(folder: Path) -> int:
    """The free bytes where `folder` is, or will be."""
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _progress(files: list[Any], name: str) -> Any:
    from tqdm import tqdm

    return tqdm(files, desc=f"unpacking {name}", unit="file", disable=not sys.stderr.isatty())
