"""Many strings in two arrays.

A million Python strings in a list are a million objects whose reference counts every worker process
touches, so each worker ends up with its own copy. Two arrays stay shared, whatever the number of
workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """A read-only sequence of strings: UTF-8 bytes end to end, and where each one ends."""

    def __init__(self, strings: Iterable[str]) -> None:
        blob = bytearray()
        ends = [0]
        for string in strings:
            blob += string.encode("utf-8", "surrogatepass")
            ends.append(len(blob))
        self._blob = np.frombuffer(bytes(blob), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

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
