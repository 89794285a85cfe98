"""Log lines beside progress bars."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest

from lavislite.common import logging as lines


def write_and_die() -> None:
    """Ends like a process that is killed in the middle of a line."""
    from tqdm import tqdm

    lines._write("begun")
    with tqdm.get_lock():
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_process_killed_while_it_writes_keeps_no_other_waiting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tqdm  # noqa: F401

    lines._write("first")
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=write_and_die)
    killed.start()
    killed.join(30)
    assert killed.exitcode == -signal.SIGKILL
    other = fork.Process(target=lines._write, args=("second",))
    other.start()
    other.join(30)
    stuck = other.is_alive()
    other.kill()
    assert not stuck
    began = time.monotonic()
    lines._write("third")
    assert time.monotonic() - began < 10
    assert "third" in capsys.readouterr().err
