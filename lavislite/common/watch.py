"""A watch beside each of several processes: no one waits for ever, or without a word.

Two threads per process. One exchanges beats with the others through a key-value store; the other
never blocks and decides. So a process ends within seconds, with the reason, when another one has
failed, when its launcher has gone, or when one that it waits for is dead; and one of them says who
waits for whom when nothing gets on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lavislite.common.heartbeat import COMPUTING, Beat, Progress, explain, ranks
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

BEAT = 0.5  # seconds between two messages
SILENT = 5.0  # so long without one: something is wrong with that process
_GRACE = 5.0  # the process that has failed should be the first to end: launchers name that one
_LEAVE = 20.0  # so long may a process that has failed take to tidy up
_LOST = 15.0  # so long without an answer: whoever holds the store has gone
_FAILED = "failed"


class Store(Protocol):
    """What is needed of a key-value store; torch's TCPStore has it."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


@dataclass(frozen=True)
class Failure:
    """The first error of the job."""

    rank: int
    message: str

    def __str__(self) -> str:
        return f"[rank {self.rank}] error: {self.message}"


def _ended_by(failure: Failure) -> str:
    return f"The job ends: {failure}"


def end_process(message: str) -> None:
    """Say it and end at once: the main thread may sit in an exchange that never returns."""
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class Watch:
    """The watch of one process.

    Args:
        store: shared by all processes, its keys not used by another attempt of the same job.
        reconnect: makes another connection to `store` when one has broken.
        speaks: this process prints the messages of others (one per machine does).
        hosts: the store lives in this process.
        warn_seconds: when nothing has got on for so long, say who waits for whom.
        timeout_seconds: and when it has been so long, end.
        orphaned: whether this process's launcher has gone.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world_size: int,
        progress: Progress,
        warn_seconds: float,
        timeout_seconds: float,
        reconnect: Callable[[], Store] | None = None,
        speaks: bool = True,
        hosts: bool = False,
        orphaned: Callable[[], bool] = lambda: False,
        end: Callable[[str], Any] = end_process,
    ) -> None:
        self.rank, self.world_size, self.progress = rank, world_size, progress
        self._store, self._reconnect = store, reconnect
        self._warn, self._timeout = warn_seconds, timeout_seconds
        self._look_after = max(warn_seconds - SILENT - 2 * BEAT, warn_seconds / 2)
        self._speaks, self._hosts, self._orphaned, self._end = speaks, hosts, orphaned, end
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name=f"watch-{loop.__name__}", daemon=True)
            for loop in (self._talk, self._judge)
        ]
        self._sent = 0
        self._looks = False
        self._suspects = False  # the main thread has seen a connection break
        self._heard: dict[int, tuple[int, float]] = {}  # rank -> number of its beat, silence
        self._beats: dict[int, Beat] = {}
        self._quiet = 0.0  # seconds without an answer of the store
        self._trouble = ""
        self._failure: Failure | None = None
        self._known_for = 0.0  # seconds since `_failure` is known
        self._say_at = warn_seconds

    def start(self) -> None:
        self._send()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more messages or verdicts."""
        self._done.set()

    def leave(self) -> None:
        """This process has failed: when it does not come to its end (workers may keep it), help."""
        self.stop()
        timer = threading.Timer(_LEAVE, self._end, ("",))
        timer.daemon = True
        timer.start()

    # ---- for the main thread

    def fail(self, message: str) -> Failure:
        """Tell the others; returns what they are told, which is the first error of the job."""
        told = Failure(self.rank, message)
        try:
            first = self._store.compare_set(_FAILED, "", json.dumps(asdict(told)))
        except RuntimeError as error:  # nobody is left to hear it
            logger.debug("The others cannot be told: %s", error)
            return told
        if self._hosts:
            self._linger()
        return Failure(**json.loads(first))

    def blame(self) -> Failure | None:
        """After a broken connection: who is behind it, if that shows within some seconds."""
        self._suspects = True
        return self.hear(SILENT + 3.0)

    def hear(self, seconds: float) -> Failure | None:
        """What another process has failed of, if it says so within `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._failure is not None and self._failure.rank != self.rank:
                return self._failure
            time.sleep(BEAT / 5)
        return None

    def say(self, failure: Failure) -> None:
        """Print what ends this process, once per machine."""
        if self._speaks:
            print(_ended_by(failure), file=sys.stderr)

    def _linger(self) -> None:
        """With this process the store goes: give the others the time to read."""
        others = [f"heard/{r}" for r in range(self.world_size) if r != self.rank]
        until = time.monotonic() + SILENT
        while time.monotonic() < until and not self._store.check(others):
            time.sleep(BEAT / 5)

    # ---- the thread that talks

    def _talk(self) -> None:
        while not self._done.wait(BEAT):
            try:
                self._send()
                self._receive()
                self._quiet = 0.0
            except RuntimeError as error:  # torch's network errors
                self._trouble = str(error).splitlines()[0]
                self._connect_again()

    def _connect_again(self) -> None:
        if self._reconnect is None:
            return
        try:
            self._store = self._reconnect()
        except RuntimeError as error:  # `_quiet` grows until the other thread ends the process
            self._trouble = str(error).splitlines()[0]

    def _send(self) -> None:
        self._sent += 1
        beat = self.progress.beat(self._look_after)
        self._store.set(f"beat/{self.rank}", json.dumps({"number": self._sent, **asdict(beat)}))

    def _receive(self) -> None:
        if self._failure is None and self._store.check([_FAILED]):
            self._store.set(f"heard/{self.rank}", "")
            self._failure = Failure(**json.loads(self._store.get(_FAILED)))
        heard, beats = {}, {}
        for r in range(self.world_size) if self._looks else ():
            if not self._store.check([f"beat/{r}"]):
                continue  # it is only about to start
            row = json.loads(self._store.get(f"beat/{r}"))
            number, silent = self._heard.get(r, (0, 0.0))  # afresh after a time without looking
            # Counted in own turns, not by the clock: a process that was stopped itself must not
            # take the others for dead.
            silent = silent + BEAT if row["number"] == number else 0.0
            heard[r] = (row.pop("number"), silent)
            beats[r] = replace(Beat(**row), silent=silent)
        self._heard, self._beats = heard, beats

    # ---- the thread that decides

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._done.wait(BEAT / 2):
            now = time.monotonic()
            passed, before = min(now - before, 2 * BEAT), now
            still = self.progress.still()
            alarmed = self._suspects or self.progress.asked_to_stop
            self._looks = alarmed or still >= self._look_after
            verdict = self._verdict(passed, still)
            if verdict is not None:
                self._end(verdict)
                return
            self._speak(still)

    def _verdict(self, passed: float, still: float) -> str | None:
        """Why this process must end now; "" where another one says it."""
        if self._orphaned():
            return f"[rank {self.rank}] error: the launcher has gone; this process ends with it."
        self._quiet += passed
        if self._quiet >= _LOST:
            why = f" ({self._trouble})" if self._trouble else ""
            return (
                f"[rank {self.rank}] error: the process that all others started with (the launcher "
                f"or rank 0) has not answered for {self._quiet:.0f} s{why}. It was killed, or its "
                "machine was lost."
            )
        if self._failure is not None:
            self._known_for += passed
            late = self._known_for >= _GRACE or self.progress.asked_to_stop
            if self._failure.rank == self.rank or not late:
                return None
            return _ended_by(self._failure) if self._speaks else ""
        if (reason := self._dead(still) or self._overdue(still)) is not None:
            first = self.fail(reason)
            if first.rank == self.rank:
                return str(first)
            return _ended_by(first) if self._speaks else ""
        return None

    def _patience(self) -> float:
        """How long a process that is waited for may be silent before it counts as dead."""
        if self._suspects:
            return SILENT
        if self.progress.asked_to_stop:  # perhaps because the launcher has seen another one die
            return 2 * SILENT
        return min(5 * self._warn, self._timeout)

    def _dead(self, still: float) -> str | None:
        """A process that is waited for gives no sign of life."""
        gone = [r for r, beat in self._beats.items() if beat.silent >= self._patience()]
        if not gone or still < SILENT:
            return None
        return (
            f"{ranks(gone)} ended without a message: killed (was memory short?), or its machine "
            f"was lost. {explain(self._beats, SILENT)}."
        )

    def _overdue(self, still: float) -> str | None:
        if still < self._timeout or not self.progress.waits:
            return None
        return (
            f"nothing has got on for {still:.0f} s (run.dist_timeout_minutes). "
            f"{explain(self._beats, SILENT)}."
        )

    def _speak(self, still: float) -> None:
        """The first process that is alive says who waits for whom, ever more rarely."""
        beats = self._beats
        if still < self._warn:
            self._say_at = self._warn
        elif still >= self._say_at and any(b.waits or b.doing == COMPUTING for b in beats.values()):
            self._say_at = 2 * still
            alive = [r for r, beat in beats.items() if beat.silent < SILENT]
            if self.rank == min(alive, default=self.rank):
                # Of other ranks' messages only errors are shown.
                level = logging.ERROR if self.rank else logging.WARNING
                logger.log(level, "No progress for %.0f s: %s.", still, explain(beats, SILENT))
