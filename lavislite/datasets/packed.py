"""Annotations as a few arrays, which processes share: packed strings, and arrays kept in files.

A million Python strings in a list are a million objects whose reference counts every worker process
touches, so each worker ends up with its own copy. Two arrays stay shared, whatever the number of
workers; and arrays in files are shared by processes that have nothing else in common (the ranks of
a run, spawned workers, two runs).

The files lie in ``<cache>/annotations``, one folder per `stored` call with large arrays, each with
a ``key.json`` that says what it was made of. They may be deleted whenever nothing runs, and are
made again when needed. A folder's time is that of its last use, so that ``find
<cache>/annotations -mindepth 1 -maxdepth 1 -mtime +60 -exec rm -r {} +`` deletes what was not used
for two months.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lavislite.common.io import atomic_write, cache_dir, file_lock
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

SMALL = 8 << 20  # bytes; arrays smaller than this together are not worth a file


class StringPacker:
    """Gathers strings for `PackedStrings` without keeping them as objects."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._ends = array("q", [0])

    def add(self, string: str) -> None:
        self._blob += string.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, k: int) -> str:
        start, end = self._ends[k], self._ends[k + 1]
        return self._blob[start:end].decode("utf-8", "surrogatepass")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What `PackedStrings.from_arrays` takes, in the same memory: nothing is added later."""
        return {
            f"{name}.utf8": np.frombuffer(self._blob, np.uint8),
            f"{name}.ends": np.frombuffer(self._ends, np.int64),
        }


class PackedStrings:
    """A read-only sequence of strings: UTF-8 bytes end to end, and where each one ends."""

    def __init__(self, strings: Iterable[str]) -> None:
        packer = StringPacker()
        for string in strings:
            packer.add(string)
        self._blob, self._ends = packer.arrays("").values()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> PackedStrings:
        """The strings whose `arrays` were called `name`."""
        packed = cls.__new__(cls)
        packed._blob, packed._ends = arrays[f"{name}.utf8"], arrays[f"{name}.ends"]
        return packed

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays that hold them, for `stored`."""
        return {f"{name}.utf8": self._blob, f"{name}.ends": self._ends}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = self._ends[index], self._ends[index + 1]
        return self._blob[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def lengths(self) -> np.ndarray:
        """[n] bytes of each string."""
        return np.diff(self._ends)


def stored(
    key: Sequence[str],
    make: Callable[[], Mapping[str, np.ndarray]],
    *,
    small: int | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of `make`, made once per machine for each `key` if they are large.

    Large arrays are kept in files and mapped into memory, read-only; pickled (for a spawned worker)
    they travel as the file's name. Small ones are made each time.

    Args:
        key: everything that `make` depends on: files (as `file_stamp`), options. The code of
            `lavislite.datasets` counts anyway.
        small: with fewer bytes they get no files; 0 where making them takes long. None: `SMALL`.
    """
    parts = [code_version(), *key]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()
    folder = cache_dir() / "annotations" / digest
    found = _opened(folder)
    if found is not None:
        return found
    with _alone(folder.with_suffix(".lock")):
        found = _opened(folder)
        return _made(folder, parts, make, small) if found is None else found


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; any number where the cache folder cannot be written to."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock))
        except OSError as error:
            logger.warning("%s: %s. Every process reads the annotations for itself.", lock, error)
            yield
            return
        yield
    lock.unlink(missing_ok=True)  # who has waited for it finds the arrays, or makes small ones


def _made(
    folder: Path,
    parts: list[str],
    make: Callable[[], Mapping[str, np.ndarray]],
    small: int | None,
) -> dict[str, np.ndarray]:
    arrays = dict(make())
    if sum(array.nbytes for array in arrays.values()) < (SMALL if small is None else small):
        return arrays
    try:
        atomic_write(folder, lambda part: _write(part, parts, arrays))
    except OSError as error:
        logger.warning("%s cannot be written (%s): annotations stay in memory", folder, error)
        return arrays
    return _opened(folder) or arrays


def _write(folder: Path, parts: list[str], arrays: Mapping[str, np.ndarray]) -> None:
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps(parts, indent=1), encoding="utf-8")
    for name, values in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, values, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


def _opened(folder: Path) -> dict[str, np.ndarray] | None:
    if not folder.is_dir():
        return None
    try:
        arrays: dict[str, np.ndarray] = {f.stem: _mapped(str(f)) for f in folder.glob("*.npy")}
    except (OSError, EOFError, ValueError) as error:  # deleted meanwhile, or damaged
        logger.warning("%s cannot be read (%s): made again", folder, error)
        return None
    if os.access(folder, os.W_OK):
        os.utime(folder)
    return arrays


class _Mapped(np.ndarray):
    """A whole array in a file; its pickle is the file's name. What is cut out of it has no file."""

    path: str | None

    def __array_finalize__(self, _: Any) -> None:
        self.path = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.path is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return _mapped, (self.path,)


def _mapped(path: str) -> _Mapped:
    array = np.load(path, mmap_mode="r").view(_Mapped)
    array.path = path
    return array


def file_stamp(path: Path) -> str:
    """Path, size and time of a file or folder: other whenever it was changed."""
    if not path.exists():
        return f"{path} (missing)"
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the modules beside this one: what reads annotations."""
    digest = hashlib.blake2b(digest_size=10)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
