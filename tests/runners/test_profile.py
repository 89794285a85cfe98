"""A profile on request: a trace that opens, a table, and the same weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from runner_parts import make_runner

from lavislite.runners.profile import profiled


def test_a_run_with_a_profile_ends_with_the_same_weights(tmp_path: Path) -> None:
    plain, traced = (make_runner(tmp_path / str(p), profile=p, max_steps=8) for p in (False, True))
    plain.train()
    traced.train()
    assert torch.equal(plain.model.head.weight, traced.model.head.weight)
    assert not (tmp_path / "False/profile").exists()

    folder = tmp_path / "True/profile"
    trace = gzip.decompress((folder / "rank0.json.gz").read_bytes())
    events = json.loads(trace)["traceEvents"]
    names = [event.get("name", "") for event in events]
    steps = {name for name in names if name.startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}
    assert any("addmm" in name for name in names)
    assert "aten::addmm" in (folder / "rank0.txt").read_text()


def test_a_run_that_ends_sooner_traces_what_there_is(tmp_path: Path) -> None:
    make_runner(tmp_path, profile=True, max_steps=3).train()
    assert (tmp_path / "profile/rank0.json.gz").is_file()


def test_a_profile_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    with profiled(tmp_path / "profile", True, torch.device("cpu")) as tick:
        for _ in range(6):
            torch.ones(2).sum()
            tick()
    assert "profile is not written" in caplog.text
