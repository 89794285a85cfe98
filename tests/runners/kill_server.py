"""Imported once by the server that `kill_job` forks its processes from: what runs import late."""

from __future__ import annotations

import tempfile
from pathlib import Path

import kill_job  # noqa: F401  (sets sys.path)
import torch
from runner_parts import make_runner

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    make_runner(Path(folder), max_steps=1, valid_splits=["val"]).train()
