"""Rows, lines and rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavislite.runners.guard import Event
from lavislite.runners.log import Meter, RunLog, Stopwatch, train_line

ROW = {
    "epoch": 1.25, "lr": 1e-4, "loss": 3.2, "loss_itc": 1.1, "grad_norm": 2.0,
    "samples_per_second": 512.0, "data_wait": 0.03, "memory_gb": 21.5,
}  # fmt: skip


def test_the_terminal_gets_one_line() -> None:
    assert train_line(50, 300, ROW) == (
        "step 50/300  epoch 1.25  loss 3.200 (itc 1.100)  lr 1.0e-04  grad 2.00  "
        "512 samples/s  data wait 3%  21.5 GB"
    )
    healthy = {**ROW, "tflops": 412.3, "mfu": 0.417, "skipped": 0}
    assert train_line(50, 300, healthy).endswith("data wait 3%  412 TFLOP/s (42%)  21.5 GB")
    assert train_line(50, 300, {**healthy, "skipped": 2}).endswith("21.5 GB  2 skipped")
    assert "TFLOP" not in train_line(50, 300, {**ROW, "tflops": 0.2})


def test_means_are_of_what_is_kept() -> None:
    meter = Meter()
    for value, keep in ((1.0, True), (float("nan"), False), (4.0, True)):
        meter.add({"loss": torch.tensor(value)}, torch.tensor(keep))
    meter.add({"other": torch.tensor(1.0)}, torch.tensor(False))
    found = meter.read()
    assert found["loss"] == 2.5
    assert found["other"] != found["other"]
    assert meter.read() == {}


def test_a_resumed_run_counts_only_its_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 12.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.restart(samples=1000)
    assert watch.read(1040)["samples_per_second"] == 20.0


def test_data_wait_is_the_share_of_the_time_spent_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    for wait, compute in ((0.5, 1.5), (0.0, 2.0)):
        with watch.waiting():
            now[0] += wait
        now[0] += compute
    with watch.paused():
        now[0] += 100.0  # an evaluation is no part of the interval
    assert watch.read(8) == {"samples_per_second": 2.0, "data_wait": 0.125}
    now[0] += 1.0
    assert watch.read(8)["data_wait"] == 0.0


class Event_:
    """A CUDA event of a GPU that has work until `busy_until`, on a clock of the test's."""

    now, busy_until = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = max(self.now, self.busy_until)

    def synchronize(self) -> None:
        assert self.now >= self.time

    def elapsed_time(self, later: Event_) -> float:
        return (later.time - self.time) * 1e3


def test_a_gpu_that_still_works_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", Event_)
    monkeypatch.setattr("time.perf_counter", lambda: Event_.now)
    Event_.now = 0.0
    watch = Stopwatch(torch.device("cuda"))
    for begin, data_there, busy_until in ((0, 3, 2), (3, 4, 10), (5, 9, 10)):
        Event_.now, Event_.busy_until = float(begin), float(busy_until)
        with watch.waiting():
            Event_.now = float(data_there)
    Event_.now = 10.0
    assert watch.read(1)["data_wait"] == 0.1  # from 2 to 3; while the host waited to 4 and 9: busy


def test_events_are_rows_and_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog(tmp_path, tensorboard=False, total_steps=9)
    log.tell(
        [
            Event("spike", 7, 50.0, 2.0, False, [f"coco#{i}" for i in range(25)]),
            Event("skip", 8, float("nan"), 2.0, True, ["coco#3"]),
        ]
    )
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(row["event"], row["step"], row["grad_norm"]) for row in rows] == [
        ("spike", 7, 50.0), ("skip", 8, None),
    ]  # fmt: skip
    assert rows[0]["usual_grad_norm"] == 2.0
    assert len(rows[0]["records"]) == 25
    assert "gradient norm 50, where 2 is usual" in caplog.text
    assert "coco#19 and 5 more." in caplog.text
    assert "Step 8 is left out" in caplog.text


def test_what_a_resumed_run_will_tell_again_is_forgotten_with_its_place(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False, total_steps=30)
    for event, step in (("start", 0), ("train", 10), ("spike", 7), ("train", 20), ("spike", 14)):
        log.write(event, step, {})
    with log.path.open("a") as file:
        file.write('{"event": "tra')  # a crash
    log.forget_after(15)  # step 14's spike was known then, but not told yet
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        ("start", 0), ("train", 10), ("spike", 7),
    ]  # fmt: skip
