"""Which machine, day and commit a figure is from."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def facts(threads: int) -> dict[str, str | int]:
    """What every file of results carries."""
    return {
        "machine": f"{platform.machine()}, {platform.system()}",
        "threads": threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def facts_line(found: dict[str, str | int]) -> str:
    """`facts` for the foot of a table."""
    return ", ".join(f"{key} {value}" for key, value in found.items())


def write_json(found: dict[str, Any], file: Path | None) -> None:
    """What was measured, to `file` if one was asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def commit() -> str:
    """The checkout's commit, marked when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
