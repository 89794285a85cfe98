"""Memory that is free goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Large pieces, then small ones on top of them that stay, as a worker has them that makes batches.
FREED = """
import ctypes, sys
from lavislite.common.allocator import give_memory_back, keep_memory

for name in sys.argv[1:]:
    {"back": give_memory_back, "keep": keep_memory}[name]()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 1 << 20

def used():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) // 1024

before = used()
if len(sys.argv) == 1:
    libc.free(libc.malloc(SIZE))  # from now on glibc keeps pieces of this size, left to itself
for _ in range(3):
    large = [libc.malloc(SIZE) for _ in range(64)]
    for piece in large:
        ctypes.memset(piece, 1, SIZE)
    small = [libc.malloc(2000) for _ in range(64)]
    for piece in large:
        libc.free(piece)
print(used() - before)
"""


def kept(*calls: str) -> int:
    """MiB that a process holds after it has freed 64 of them."""
    command = [sys.executable, "-c", FREED, *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_large_pieces_return_to_the_system_at_once() -> None:
    assert kept("back") < 10
    if kept() < 10:
        pytest.skip("this C library returns them anyway")


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_large_pieces_stay_for_the_next_step_except_in_workers() -> None:
    if kept() < 10:
        pytest.skip("this C library returns them anyway")
    assert kept("keep") > 50
    assert kept("keep", "back") < 10  # what a worker inherits, it undoes
