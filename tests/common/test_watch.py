"""A process ends, with the reason, when it waits for one that will not come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lavislite.common import failing, watch
from lavislite.common.errors import TrainingError
from lavislite.common.heartbeat import COMPUTING, LOADING, Progress
from lavislite.common.watch import Failure, Watch


class DictStore(dict):
    """What a TCPStore does, in this process; `broken` when whoever holds it has gone."""

    broken = False

    def check(self, keys: list[str]) -> bool:
        if self.broken:
            raise RuntimeError("Connection reset by peer")
        return all(key in self for key in keys)

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:  # noqa: ARG002
        return self.setdefault(key, desired.encode())


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.05, "SILENT": 0.5, "_GRACE": 0.2, "_LOST": 0.6}.items():
        monkeypatch.setattr(watch, name, seconds)


class Job:
    """Watches of several processes, all in this one."""

    def __init__(self) -> None:
        self.store, self.ended, self.watches = DictStore(), {}, []  # type: ignore[var-annotated]

    def start(self, n: int, **options: Any) -> Job:
        for r in range(n):
            one = {"rank": r, "world_size": n, "progress": Progress(), "end": self._end(r)}
            times = {"warn_seconds": 60.0, "timeout_seconds": 600.0}
            self.watches.append(Watch(self.store, **one, **(times | options)))
            self.watches[-1].start()
        return self

    def _end(self, r: int) -> Callable[[str], None]:
        return lambda message: self.ended.update({r: message})

    def wait(self, condition: Callable[[], Any], seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.02)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    for one in job.watches:
        one.stop()
    for one in job.watches:
        for thread in one._threads:
            thread.join(timeout=10)


def test_the_message_of_the_first_failure_ends_the_others(job: Job) -> None:
    job.start(3)
    assert job.watches[2].fail("boom") == Failure(2, "boom")
    assert job.watches[0].fail("a consequence") == Failure(2, "boom")
    job.wait(lambda: len(job.ended) == 2)
    assert job.ended[1] == "The job ends: [rank 2] error: boom"
    assert 2 not in job.ended  # it ends by itself


def test_a_process_that_says_nothing_any_more_is_named(job: Job) -> None:
    job.start(3, warn_seconds=0.4)
    job.watches[1].progress.at(7, LOADING)
    job.wait(lambda: b'"step": 7' in job.store["beat/1"])
    job.watches[1].stop()  # as if killed
    job.wait(lambda: {0, 2} <= set(job.ended))
    text = job.ended[0]
    assert "rank 1 ended without a message: killed" in text
    assert "rank 1 has not been heard of for" in text
    assert "last at step 7 (loading data)" in text


def test_after_a_broken_connection_the_dead_are_found_sooner(job: Job) -> None:
    job.start(2)
    job.watches[1].stop()
    job.watches[0].blame()
    job.wait(lambda: 0 in job.ended)
    assert "[rank 0] error: rank 1 ended without a message" in job.ended[0]


def test_a_signal_alone_is_no_reason_to_give_up_on_others(job: Job) -> None:
    job.start(2)
    for one in job.watches:
        one.progress.asked_to_stop = True
    time.sleep(1.5)  # longer than the dead are waited for
    assert not job.ended


def test_who_waits_for_whom_is_said_and_in_the_end_it_ends(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lavislite"):
        job.start(2, warn_seconds=0.5, timeout_seconds=2.0)
        job.watches[0].progress.at(5, COMPUTING)
        job.watches[1].progress.at(4, LOADING)
        job.wait(lambda: len(job.ended) == 2)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("No progress for ")
    assert "rank 0 waits at step 5 (forward and backward" in said[0]
    assert "rank 1 is at step 4 (loading data" in said[0]
    assert len(said) <= 3  # ever more rarely
    assert "nothing has got on for 2 s (run.dist_timeout_minutes)" in job.ended[0]


def test_no_word_while_everybody_is_busy(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lavislite"):
        job.start(2, warn_seconds=0.3)
        time.sleep(1)
    assert not caplog.records
    assert not job.ended


def test_without_its_store_a_process_ends(job: Job) -> None:
    job.start(2)
    job.store.broken = True
    job.wait(lambda: len(job.ended) == 2)
    assert "(the launcher or rank 0) has not answered for" in job.ended[1]
    assert "Connection reset by peer" in job.ended[1]


def test_a_broken_connection_to_the_store_is_made_again(job: Job) -> None:
    working, broken = DictStore(), DictStore()
    job.store = broken
    job.start(1, reconnect=lambda: working)
    broken.broken = True
    time.sleep(1)
    assert not job.ended
    assert "beat/0" in working


def test_without_its_launcher_a_process_ends(job: Job) -> None:
    gone = threading.Event()
    job.start(2, orphaned=gone.is_set)
    time.sleep(0.3)
    assert not job.ended
    gone.set()
    job.wait(lambda: len(job.ended) == 2)
    assert "the launcher has gone" in job.ended[0]


# ---- the main thread's side


def test_an_error_is_told_and_raised(job: Job) -> None:
    job.start(2)
    with pytest.raises(ValueError, match="boom") as caught, failing.watched(job.watches[0]):
        raise ValueError("boom")
    assert caught.value.own_rank  # type: ignore[attr-defined]
    job.wait(lambda: 1 in job.ended)
    assert job.ended[1] == "The job ends: [rank 0] error: ValueError: boom"


def test_an_error_that_all_have_found_is_said_by_the_main_process(job: Job) -> None:
    job.start(2)
    job.watches[0].fail("the disk is full")
    with pytest.raises(TrainingError) as caught, failing.watched(job.watches[1]):
        raise TrainingError("the disk is full")
    assert not caught.value.own_rank  # type: ignore[attr-defined]


def test_a_consequence_gives_way_to_its_cause(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.start(2)
    job.watches[1].fail("boom")
    with pytest.raises(SystemExit) as caught, failing.watched(job.watches[0]):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert caught.value.code == 1
    assert "[rank 1] error: boom" in capsys.readouterr().err


def test_one_process_fails_as_it_would_without_a_watch() -> None:
    with pytest.raises(ValueError, match="boom"), failing.watched(None):
        raise ValueError("boom")


def test_a_killed_worker_is_a_lesson_about_memory() -> None:
    lesson = r"worker \(pid 7\) is killed by signal: Killed\. Most often memory"
    with pytest.raises(TrainingError, match=lesson), failing.watched(None):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert failing.worker_death(RuntimeError("something else")) is None
