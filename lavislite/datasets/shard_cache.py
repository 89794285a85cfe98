"""Whole archives fetched from elsewhere, kept on the local disk as long as there is room.

They lie in ``<cache>/shards/data``, for all processes of the machine and all runs; those that were
not used for the longest time go first. The folder may be deleted whenever nothing runs.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lavislite.common.errors import DataError
from lavislite.common.io import cache_dir, file_lock
from lavislite.datasets.remote import Unreachable, fetch_whole, read_range
from lavislite.datasets.stores import RemoteFile

GB = 1e9
_WHOLE, _PART, _FAILED = ".tar", ".part", ".failed"
_REMEMBERED = 10.0  # seconds
_TOUCHED = 1.0  # seconds: the time of last use is no more exact than that


class ShardCache:
    """Reads remote files through whole copies that together take at most `limit` bytes.

    Any number of threads and processes may read at the same time: each file is fetched by one of
    them, while the others wait for it.

    Args:
        limit: 0 keeps nothing and reads byte ranges over the network.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._folder = cache_dir() / "shards" / "data"
        self._used: dict[str, float] = {}  # name -> when its last use was noted by this process

    def read(self, file: RemoteFile, start: int, length: int) -> bytes:
        """`length` bytes of `file` from `start` on.

        Raises:
            Unreachable: the file cannot be had.
            DataError: the copy cannot be written, or the server has no ranges and `limit` is 0.
        """
        if not self.limit:
            return read_range(file, start, length)
        with self._opened(file) as descriptor:
            return os.pread(descriptor, length, start)

    @contextmanager
    def whole(self, file: RemoteFile) -> Iterator[Path]:
        """A copy of all of `file`, valid inside; kept afterwards if there may be any.

        Raises:
            Unreachable, DataError: as `read`.
        """
        if self.limit:
            with self._opened(file) as descriptor:
                yield Path(f"/dev/fd/{descriptor}")  # stays readable when it is put out
            return
        part = self._part(file)
        with file_lock(self._lock_file(part)):
            try:
                with self._disk_errors(file):
                    part.touch()
                    fetch_whole(file, part)
                yield part
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, file: RemoteFile) -> Iterator[int]:
        path = self._path(file)
        while True:
            with self._disk_errors(file):
                descriptor = self._open(path)
            if descriptor is not None:
                break
            self.bring(file)  # never fetched, or put out again meanwhile
        try:
            self._touch(path)
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _open(path: Path) -> int | None:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None

    # ------------------------------------------------------------------------------------ fetching

    def bring(self, file: RemoteFile) -> None:
        """Fetch `file` unless it is there.

        Raises:
            Unreachable, DataError: as `read`.
        """
        if file.size > self.limit:
            raise DataError(
                f"{file.url}: has {file.size / GB:.3g} GB, more than shard_cache_gb: "
                f"{self.limit / GB:g} has room for."
            )
        with self._disk_errors(file):
            self._bring(file)

    def _bring(self, file: RemoteFile) -> None:
        path, part = self._path(file), self._part(file)
        with file_lock(self._lock_file(path)):
            if path.exists():
                return
            self._refuse_what_just_failed(path)
            while not self._room_for(file, part):
                time.sleep(0.1)  # others are fetching: theirs may go when it is there
            try:
                fetch_whole(file, part)
                part.replace(path)
            except Unreachable as error:
                path.with_suffix(_FAILED).write_text(str(error), encoding="utf-8")
                raise
            finally:
                part.unlink(missing_ok=True)

    def _refuse_what_just_failed(self, path: Path) -> None:
        """Those who waited while another process tried in vain need not try one after the other."""
        failed = path.with_suffix(_FAILED)
        if failed.exists():
            reason, age = failed.read_text(encoding="utf-8"), time.time() - failed.stat().st_mtime
            if age < _REMEMBERED:
                raise Unreachable(reason)
            failed.unlink()

    @contextmanager
    def _disk_errors(self, file: RemoteFile) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{file.url} cannot be kept in {self._folder}: {error}. Make room, let "
                "$LAVISLITE_CACHE name another disk, or lower shard_cache_gb (0 keeps nothing)."
            ) from error

    def _room_for(self, file: RemoteFile, part: Path) -> bool:
        """Put out old files until `file` fits, and reserve its place; False if it does not fit."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self._folder / "room.lock")):
            sizes = self._found()
            free = self.limit - sum(stat.st_size for stat in sizes.values())
            for path in sorted(sizes, key=lambda path: sizes[path].st_mtime):
                if free >= file.size:
                    break
                if path.endswith(_PART) and not self._abandoned(Path(path), part):
                    continue
                Path(path).unlink(missing_ok=True)
                free += sizes[path].st_size
            if free < file.size:
                return False
            with part.open("wb") as place:
                place.truncate(file.size)
            return True

    def _found(self) -> dict[str, os.stat_result]:
        """The copies, and those that are being made."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith((_WHOLE, _PART)):
                    with suppress(FileNotFoundError):  # just renamed
                        found[entry.path] = entry.stat()
        return found

    def _abandoned(self, part: Path, own: Path) -> bool:
        """Whoever began to fetch `part` is no more."""
        if self._lock_file(part) == self._lock_file(own):  # which is ours
            return True
        try:
            with FileLock(self._lock_file(part), timeout=0):
                return True
        except Timeout:
            return False

    # --------------------------------------------------------------------------------------- names

    def _path(self, file: RemoteFile) -> Path:
        about = f"{file.url}\0{file.size}\0{file.version}"
        return self._folder / (hashlib.sha256(about.encode()).hexdigest()[:24] + _WHOLE)

    def _part(self, file: RemoteFile) -> Path:
        return self._path(file).with_suffix(_PART)

    def _lock_file(self, path: Path) -> str:
        return str(self._folder / "locks" / f"{path.stem[:2]}.lock")  # some files share one

    def _touch(self, path: Path) -> None:
        """Note that the file is in use, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._used.get(path.name, -_TOUCHED) >= _TOUCHED:
            self._used[path.name] = now
            with suppress(FileNotFoundError):  # put out meanwhile; it is open, so it can be read
                os.utime(path)
