"""Compiled layers under DDP and FSDP, on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.language.tiny import save_tiny

HERE = Path(__file__).parent


@pytest.mark.slow
def test_compiled_layers_train_alike_with_every_strategy(tmp_path: Path) -> None:
    save_tiny(tmp_path / "opt", "opt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(HERE / "compile_job.py"), str(tmp_path)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = torch.load(tmp_path / "rank0.pt", weights_only=True)
    assert len(found) == 5
    for name, (plain, compiled) in found.items():
        near = 2e-2 if "int8" in name else 1e-5  # where a value is rounded to the other side
        assert compiled["losses"] == pytest.approx(plain["losses"], abs=near), name
        assert compiled["more"] == 0, name
