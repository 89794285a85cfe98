"""One file of a data set: downloaded, checked, unpacked; a second call finds it done.

Everything unfinished, and the notes of what was unpacked, are kept in ``<root>/.downloads``, so
that the data folders hold data only.
"""

from __future__ import annotations

import json
from pathlib import Path

from lavislite.common.errors import DataError, UserError
from lavislite.common.io import atomic_write_text, file_lock
from lavislite.common.transfer import check_sum, download
from lavislite.download.description import File
from lavislite.download.unpack import DamagedArchive, unpack
from lavislite.download.verify import complete

_STAGE = ".downloads"


def staged(file: File, root: Path) -> Path:
    """Where `file` lies until it is finished, and an archive as long as it is kept."""
    return root / _STAGE / file.path


def is_done(file: File, root: Path) -> bool:
    """Whether `file` need not be fetched: it is there (as it should be), or has been unpacked."""
    if file.unpack != "none":
        return _was_unpacked(file, root) or complete(file, root)
    path = root / file.path
    if not path.is_file() or _trouble(file, path) is not None:
        return False
    try:
        for kind, value in _sums(file).items():
            check_sum(path, kind, value, str(path))
    except UserError:
        return False
    return True


def marker_of(file: File, root: Path) -> Path | None:
    """The note that says the archive was unpacked, if there is one."""
    marker = _marker(file, root)
    return marker if file.unpack != "none" and marker.exists() else None


def _was_unpacked(file: File, root: Path) -> bool:
    """Whether the note says so, and of the same files."""
    try:
        note = json.loads(_marker(file, root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(note == {**_note(file), "files": note.get("files")})


def _note(file: File) -> dict[str, object]:
    return {"into": file.into, "below": file.below, "only": list(file.only)}


def fetch_file(file: File, root: Path, keep_archive: bool = False) -> bool:
    """Make sure that `file` is there below `root`; False if it was already.

    Raises:
        UserError: it cannot be had, or is not what it should be; names the URL.
    """
    archive = staged(file, root)
    with file_lock(archive.with_name(f"{archive.name}.busy")):  # two commands at a time
        if is_done(file, root):
            return False
        download(file.url, archive, md5=file.md5, sha256=file.sha256)
        if file.unpack == "none":
            _check(file, archive)
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # perhaps someone's own version: not ours to remove
                target.replace(target.with_name(f"{target.name}.old"))
            archive.replace(target)
        else:
            _unpack(file, archive, root, keep_archive)
    return True


def _unpack(file: File, archive: Path, root: Path, keep: bool) -> None:
    try:
        _check(file, archive)
        count = unpack(archive, root / file.into, file.unpack, file.below, file.only)
    except DamagedArchive as error:
        archive.unlink(missing_ok=True)
        raise DataError(
            f"{file.url}: what came is no readable {file.unpack} archive ({error.__cause__}). It "
            "was removed; run the command again to fetch it afresh."
        ) from error
    atomic_write_text(_marker(file, root), json.dumps({**_note(file), "files": count}))
    if not keep:
        archive.unlink()


def _check(file: File, path: Path) -> None:
    trouble = _trouble(file, path)
    if trouble is not None:
        path.unlink()
        raise UserError(f"{file.url}: {trouble}")


def _trouble(file: File, path: Path) -> str | None:
    """Why `path` cannot be `file`, as far as one can tell; None if it may be."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty."
    if file.size is not None and size != file.size:
        return f"expected {file.size:,} bytes, got {size:,}: cut short, or the file has changed."
    with path.open("rb") as stream:
        start = stream.read(200).lstrip(b"\xef\xbb\xbf \t\r\n")
    if file.path.endswith(".json") and start[:1] not in (b"{", b"["):
        return f"not JSON, it begins with {start[:40]!r}. A web page in its place?"
    return None


def _sums(file: File) -> dict[str, str]:
    both = {"md5": file.md5, "sha256": file.sha256}
    return {kind: value for kind, value in both.items() if value is not None}


def _marker(file: File, root: Path) -> Path:
    archive = staged(file, root)
    return archive.with_name(f"{archive.name}.unpacked")
