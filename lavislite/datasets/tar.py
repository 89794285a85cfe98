"""Where the files of a tar archive lie, read from its headers alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lavislite.common.errors import DataError
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """A regular file in an archive: `content` is at `offset`, `size` bytes long."""

    name: str
    offset: int
    size: int


class Damaged(Exception):
    """What follows cannot be read."""


def members(path: Path, name: str = "") -> Iterator[tuple[Member, memoryview]]:
    """The regular files of an archive with their contents, which are valid until the next one.

    An archive that is cut short or damaged within ends (with a warning) before the first file that
    is not whole.

    Args:
        name: what to call the archive in messages; its path if empty.

    Raises:
        DataError: it is no tar archive, or a compressed one.
    """
    size, name = path.stat().st_size, name or str(path)
    if size == 0:
        raise DataError(f"{name}: is empty; a tar archive is expected.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        n = 0
        try:
            for member in _walk(data, size):
                whole = memoryview(data)[member.offset : member.offset + member.size]
                with whole:
                    yield member, whole
                n += 1
        except Damaged as error:
            if n == 0:
                raise DataError(f"{name}: not a tar archive{_hint(data[:2])}: {error}.") from error
            logger.warning("%s: only its first %d files are read: %s", name, n, error)


def _hint(start: bytes) -> str:
    kind = _COMPRESSED.get(start)
    return f" but compressed ({kind}; unpack that layer)" if kind else ""


def _walk(data: mmap.mmap, size: int) -> Iterator[Member]:
    """Every regular file; the names of long ones come from the entry before them."""
    at, long_name, long_size = 0, None, None
    while at + _BLOCK <= size:
        header = data[at : at + _BLOCK]
        if header[0] == 0 and not any(header):
            return  # the end of the archive
        _check(header, at)
        length = _number(header[124:136])
        kind = header[156:157]
        if kind in _REGULAR and long_size is not None:
            length = long_size
        start = at + _BLOCK
        if start + length > size:
            raise Damaged(f"cut short at byte {size}")
        at = start + -(-length // _BLOCK) * _BLOCK
        if kind == b"L":  # GNU: the name of the next entry
            long_name = data[start : start + length].rstrip(b"\0")
        elif kind == b"x":  # pax: what is particular about the next entry
            fields = _pax(data[start : start + length])
            long_name = fields.get(b"path", long_name)
            long_size = int(fields[b"size"]) if b"size" in fields else None
        elif kind != b"g":  # pax: about the whole archive
            if kind in _REGULAR:
                name = long_name if long_name is not None else _name(header)
                yield Member(name.decode("utf-8", "surrogateescape"), start, length)
            long_name = long_size = None
    if at > size or (at < size and any(data[at:size])):
        raise Damaged(f"cut short at byte {size}")


def _check(header: bytes, at: int) -> None:
    try:
        expected = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise Damaged(f"no header at byte {at}") from error
    if expected != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise Damaged(f"no header, or a damaged one, at byte {at}")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: in base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    # GNU's own format keeps times where ustar has the prefix.
    gnu = header[257:265] == b"ustar  \0"
    return prefix + b"/" + name if prefix and not gnu else name


def _pax(block: bytes) -> dict[bytes, bytes]:
    """``length key=value`` lines; a value may hold line breaks."""
    fields: dict[bytes, bytes] = {}
    while block.strip(b"\0"):
        digits, _, _ = block.partition(b" ")
        try:
            line, block = block[: int(digits)], block[int(digits) :]
        except ValueError as error:
            raise Damaged("an extended header that makes no sense") from error
        key, _, value = line[len(digits) + 1 : -1].partition(b"=")
        fields[key] = value
    return fields
