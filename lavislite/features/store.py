"""A folder of feature rows: files of a bounded size, mapped into memory, with a stamp for each row.

A row belongs to one picture for good. Its stamp is 0 until its bytes are on the disk, and tells
which version of the picture they are of: what a kill interrupts is computed again, nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavislite.common.io import atomic_write, atomic_write_text, read_json
from lavislite.features.layout import Layout

HEADER = "header.json"
_NAMES = "names.npy"
_FILE_BYTES = 256 << 20
_FILES = 64  # a small store has about so many files: processes share the work by files
_PENDING = 256 << 20  # bytes that may be lost by a kill, if they were written
_SECONDS = 10.0  # within so much time


class FeatureStore:
    """Rows of features, each of `views` views.

    Args:
        header: what `header_of` returned.

    Attributes:
        row_bytes: size of a row.
        per_file: rows in a file.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.header = dict(header)
        self.layout = Layout(header["tokens"], header["width"], header["dtype"])
        self.views = int(header["views"])
        self.per_file = int(header["rows_per_file"])
        self.row_bytes = self.views * self.layout.nbytes
        self._maps: dict[int, Tensor] = {}

    @classmethod
    def opened(cls, folder: Path, header: Mapping[str, Any]) -> FeatureStore:
        """The store in `folder`; there is none yet: one with this header, not written so far."""
        found = folder / HEADER
        return cls(folder, read_json(found) if found.is_file() else header)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps the files for itself

    def note(self, **facts: Any) -> None:
        """Write the header, with these entries besides."""
        self.header |= facts
        text = json.dumps(self.header, indent=1) + "\n"
        atomic_write_text(self.folder / HEADER, text)

    # ---- which picture has which row

    def names(self) -> np.ndarray:
        """uint64 [rows]: the pictures that have a row."""
        path = self.folder / _NAMES
        return np.load(path, allow_pickle=False) if path.is_file() else np.empty(0, np.uint64)

    def rows_of(self, names: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows of the pictures called `names`; -1 where one has none."""
        known = self.names()
        if not len(known):
            return np.full(len(names), -1)
        order = np.argsort(known, kind="stable")
        place = np.searchsorted(known, names, sorter=order).clip(max=len(known) - 1)
        return np.where(known[order[place]] == names, order[place], -1)

    def allot(self, names: np.ndarray) -> None:
        """Give a row to every picture that has none, in their order."""
        new = names[self.rows_of(names) < 0]
        _, first = np.unique(new, return_index=True)
        if len(first):
            every = np.concatenate([self.names(), new[np.sort(first)]])
            atomic_write(self.folder / _NAMES, lambda part: _save(part, every))

    def nbytes(self, rows: int) -> int:
        """Bytes on disk of so many rows with their names and stamps."""
        return rows * (self.row_bytes + 16)

    def bytes_there(self) -> int:
        """Bytes that its files take now."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.glob("*.bin"))

    # ---- what is computed

    def stamps(self) -> np.ndarray:
        """uint64 [rows]: of which version of its picture a row is; 0 where it is not computed."""
        rows = len(self.names())
        stamps = np.zeros(-(-rows // self.per_file) * self.per_file, np.uint64)
        for first in range(0, rows, self.per_file):
            number = first // self.per_file
            path = self._file(number)
            whole = path.stat().st_size // self.row_bytes if path.is_file() else 0
            if whole and (found := self._stamp_file(number)).is_file():
                known = np.fromfile(found, np.uint64)[:whole]
                stamps[first : first + len(known)] = known
        return stamps[:rows]

    def forget(self, rows: np.ndarray) -> None:
        """Rows that are no longer true, before others are written in their place."""
        writer = Writer(self)
        for row in rows.tolist():
            writer.mark(row, 0)
        writer.commit()

    # ---- reading

    def read(self, row: int, view: int) -> Tensor:
        """[tokens, width] of a row that is computed; a part of the mapped file."""
        number, place = divmod(row, self.per_file)
        if number not in self._maps:
            # Copy-on-write: torch wants memory that could be written to.
            mapped = np.memmap(self._file(number), np.uint8, mode="c")
            self._maps[number] = torch.from_numpy(mapped)
        start = place * self.row_bytes + view * self.layout.nbytes
        return self.layout.decode(self._maps[number][start : start + self.layout.nbytes])

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.bin"

    def _stamp_file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.stamps.bin"


class Writer:
    """Writes rows of a store; the rows of one file are one writer's at a time."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._open: dict[Path, int] = {}
        self._marks: list[tuple[int, int]] = []
        self._pending, self._sure = 0, time.monotonic()

    def write(self, row: int, view: int, raw: np.ndarray) -> None:
        """The bytes of one view; `commit` makes sure of them."""
        number, place = divmod(row, self._store.per_file)
        start = place * self._store.row_bytes + view * self._store.layout.nbytes
        _write_at(self._descriptor(self._store._file(number)), raw.tobytes(), start)
        self._pending += raw.nbytes

    def mark(self, row: int, stamp: int) -> None:
        """All views of `row` are written: it is to have `stamp`, at the next `commit`."""
        self._marks.append((row, stamp))
        if self._pending >= _PENDING or time.monotonic() - self._sure >= _SECONDS:
            self.commit()

    def commit(self) -> None:
        """Bring what was written to the disk, and only then the stamps; close the files."""
        self._flush()
        for row, stamp in self._marks:
            number, place = divmod(row, self._store.per_file)
            file = self._descriptor(self._store._stamp_file(number))
            _write_at(file, stamp.to_bytes(8, "little"), 8 * place)
        self._flush()
        self._marks, self._pending, self._sure = [], 0, time.monotonic()

    def _flush(self) -> None:
        for file in self._open.values():
            os.fsync(file)
            os.close(file)
        self._open = {}

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        return self._open[path]


def header_of(layout: Layout, views: int, pictures: int, **facts: Any) -> dict[str, Any]:
    """The header of a new store for about so many pictures; `facts` are kept with it."""
    most = max(1, _FILE_BYTES // (views * layout.nbytes))
    return {
        "tokens": layout.tokens,
        "width": layout.width,
        "dtype": layout.dtype,
        "views": views,
        "rows_per_file": min(most, max(1, -(-pictures // _FILES))),
        **facts,
    }


def _write_at(file: int, data: bytes, place: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
