"""Checkpoints of several processes: killed, failing, and continued by more or fewer of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kill_job import log, run, run_together
from test_checkpoint import names
from test_resume import same, weights

OPTIONS: dict[str, Any] = {"max_steps": 6, "save_every_steps": 1, "log_freq": 4}


def test_killed_together_they_go_on_to_the_same_bits(tmp_path: Path) -> None:
    options = {**OPTIONS, "batch_size_train": 2, "valid_splits": ["val"]}
    assert run_together(tmp_path / "whole", **options) == [0, 0]
    codes = run_together(tmp_path / "killed", kill=("trainer", 4), **options)
    assert codes[0] == -9
    assert codes[1] != 0  # killed, unless it noticed before
    assert run_together(tmp_path / "killed", **options) == [0, 0]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert log(tmp_path / "whole") == log(tmp_path / "killed")


def test_a_failing_write_stops_both_at_the_same_step(tmp_path: Path) -> None:
    options = {**OPTIONS, "batch_size_train": 2}
    assert run_together(tmp_path, kill=("full", 3), **options) == [0, 0]
    errors = [(tmp_path / f"error{rank}").read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert "step_3: No space left on device" in errors[0]
    assert errors[0].startswith(("step 3:", "step 4:"))
    assert {"last", "step_2"} == set(names(tmp_path)) - {"step_1"}


@pytest.mark.parametrize("first", [1, 2])
def test_more_or_fewer_processes_continue_with_the_same_batches(tmp_path: Path, first: int) -> None:
    # The same 8 samples a step; without dropout only the order of the sums differs.
    together = {**OPTIONS, "batch_size_train": 4, "plain": True}
    alone = {**OPTIONS, "batch_size_train": 8, "plain": True}
    assert run(tmp_path / "whole", **alone) == 0
    if first == 1:
        assert run(tmp_path / "run", kill=("trainer", 4), **alone) == -9
        assert run_together(tmp_path / "run", **together) == [0, 0]
    else:
        assert run_together(tmp_path / "run", kill=("trainer", 4), **together)[0] == -9
        assert run(tmp_path / "run", **alone) == 0
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.allclose(weights(tmp_path / "run")[name], weight, atol=1e-5)
    [whole, continued] = [log(tmp_path / name) for name in ("whole", "run")]
    assert [row["step"] for row in continued] == [row["step"] for row in whole]
