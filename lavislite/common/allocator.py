"""How the C library keeps memory that is free again."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE = 256 << 10  # bytes


def give_memory_back(_: int = 0) -> None:
    """Let every large piece of memory return to the system when it is freed, in this process.

    Takes a worker's number, so that a `DataLoader` may call it when a worker starts. glibc raises
    its idea of "large" with what it sees, and keeps what is smaller: a worker that makes batches of
    pictures grows to many times what it uses at any moment. Other C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
