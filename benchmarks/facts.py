"""Which machine, day and commit a figure is from."""

from __future__ import annotations

import argparse
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
        "machine": f"{platform.machine()}, {platform.system()}, {processor()}",
        "threads": threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def processor() -> str:
    """Its name, as far as the system tells."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor()) or "unknown processor"


def facts_line(found: dict[str, str | int]) -> str:
    """`facts` for the foot of a table."""
    return ", ".join(f"{key} {value}" for key, value in found.items())


def write_json(found: dict[str, Any], file: Path | None) -> None:
    """What was measured, to `file` if one was asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def command_line(doc: str | None, quick: str, threads: int | None = 2) -> argparse.ArgumentParser:
    """What the command line of every benchmark takes.

    Args:
        quick: what --quick makes smaller.
        threads: how many as a default; None for a benchmark that uses just one.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


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
