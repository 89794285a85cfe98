"""Runs of a toy project in several processes, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).with_name("fault_parts.py")
PROJECT = f"""
user_dir: {PARTS}
model: {{arch: faulty}}
datasets:
  toy_data: {{size: 64}}
run:
  task: toy_task
  batch_size_train: 4
  max_steps: 12
  save_every_steps: 4
  num_workers: 0
  log_freq: 1
  tensorboard: false
  report: false
  device: cpu
"""
LAUNCHERS = ("TORCHELASTIC", "SLURM", "MASTER", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_")


def write_project(folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(PROJECT)
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command(project: Path, *options: str) -> list[str]:
    script = [str(ROOT / "train.py"), "--cfg-path", str(project)]
    return [*script, *(["--options", *options] if options else [])]


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def start(line: list[str], folder: Path, name: str, **env: str) -> subprocess.Popen[str]:
    """Begin a command in `folder`; what it says goes to the file ``<name>.txt`` there."""
    with (folder / f"{name}.txt").open("a") as out:
        return subprocess.Popen(
            line, cwd=folder, env=environment(**env), stdout=out, stderr=out, text=True
        )


def processes(folder: Path) -> list[int]:
    """The training processes that work in `folder`, without launchers and loader workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            inside = (entry / "cwd").resolve() == folder.resolve()
        except OSError:  # it has just ended
            continue
        if inside and any(word.endswith(b"train.py") for word in words[:3]):
            found.append(int(entry.name))
    return sorted(found)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return found


def end_all(folder: Path) -> None:
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)


def rows(folder: Path, event: str = "train") -> list[dict[str, Any]]:
    """Rows of the log of the only run in `folder`."""
    (path,) = folder.glob("output/toy/2*/log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in lines if row["event"] == event]
