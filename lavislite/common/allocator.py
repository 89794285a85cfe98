"""How the C library keeps memory that is free again: glibc; others are left alone."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_LARGE = 256 << 10  # bytes
_SPARE = 64 << 20
_NEVER = (1 << 31) - 1  # the largest that mallopt takes


def give_memory_back(_: int = 0) -> None:
    """Let every large piece of memory return to the system when it is freed, in this process.

    Takes a worker's number, so that a `DataLoader` may call it when a worker starts. glibc raises
    its idea of "large" with what it sees, and keeps what is smaller: a worker that makes batches of
    pictures grows to many times what it uses at any moment.
    """
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, _LARGE)
    _set(_M_TOP_PAD, 0)


def keep_memory() -> None:
    """Keep what is freed for the next step, in this process.

    For a CPU that trains, where each step takes the same tensors anew: left to itself, glibc
    returns the large ones to the system, which has to clear and map their pages again.
    """
    _set(_M_MMAP_THRESHOLD, _NEVER)
    _set(_M_TRIM_THRESHOLD, _NEVER)
    _set(_M_TOP_PAD, _SPARE)


def _set(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(parameter, value)
