"""Stopping a run politely: finish the step, save, say how to go on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lavislite.common import distributed, heartbeat
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_SECONDS = 3.0  # torchrun passes on the Ctrl-C that the terminal has already sent to everyone


@dataclass(frozen=True)
class Told:
    """What the processes told each other after a step; the same on all of them.

    Attributes:
        signum: the signal that one of them received, or 0.
        save: it is time for a checkpoint.
        failed: the last checkpoint could not be written.
    """

    signum: int
    save: bool
    failed: bool


class StopRequest:
    """Whether somebody pressed Ctrl-C or the scheduler wants the machine back."""

    def __init__(self) -> None:
        self._signum = 0

    def receive(self, signum: int) -> None:
        self._signum = signum

    def exchange(self, *, save: bool = False, failed: bool = False) -> Told:
        """Tell the other processes and hear what any of them has to say: the one exchange a step.

        All processes call it together; the host does not wait for a GPU.
        """
        words = distributed.gather_ints(self._signum << 2 | failed << 1 | save)
        return Told(
            signum=max(word >> 2 for word in words),
            save=any(word & 1 for word in words),
            failed=any(word & 2 for word in words),
        )


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process at once.

    With several processes it counts as second only after a few seconds.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    received: list[float] = []

    def on_signal(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(time.monotonic())
        if len(received) == 1:
            request.receive(signum)
            heartbeat.PROGRESS.asked_to_stop = True
            if not distributed.is_distributed():
                restore()
            logger.info("Stopping: finishing this step, then saving. (Again to abort at once.)")
        elif received[-1] - received[0] > _ECHO_SECONDS:
            restore()
            signal.raise_signal(signum)

    for signum in _SIGNALS:
        signal.signal(signum, on_signal)
    try:
        yield request
    finally:
        restore()
