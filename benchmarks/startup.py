"""How long it takes to begin: ``import lavislite``, ``lavislite --help``, the first training step.

    python benchmarks/startup.py --quick --json benchmarks/results/startup.json

Each is timed from the start of a new process (the import: within it); beside it stands what that
process cannot do without: an empty Python, or ``import torch``. The first step is that of
``projects/blip2/pretrain_stage1.yaml``, until its line is in the log. As shipped, that project
evaluates before it trains; this is left out, but for a row of its own without ``--quick``. The
playground is made first if it is not there (two minutes, not counted).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facts import command_line, facts, write_json

ROOT = Path(__file__).parents[1]
PROJECT = "projects/blip2/pretrain_stage1.yaml"
TRAINING_ONLY = (
    *("run.eval_at_start=false", "run.monitor=null", "run.report=false"),
    *("run.valid_splits=[]", "run.test_splits=[]"),
)
LIMITS = {"import": 0.2, "help": 0.5, "first step": 15.0}


def seconds_of(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def import_seconds() -> float:
    """Of ``import lavislite`` alone, in a new process."""
    code = "import time; s = time.perf_counter(); import lavislite; print(time.perf_counter() - s)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def first_step_seconds(folder: str, options: Sequence[str], threads: int) -> float:
    """From the start of the process to the line of the first step; the run is ended there."""
    command = [sys.executable, "train.py", "--cfg-path", PROJECT, "--options"]
    command += [f"run.output_dir={folder}", "run.log_freq=1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start, said = time.perf_counter(), []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            said.append(line)
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - start
                run.terminate()
                run.stderr.read()
                return seconds
    raise RuntimeError(f"{' '.join(command)}: no first step\n{''.join(said)}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    python, times = sys.executable, 3 if args.quick else 9
    command_line = [python, "-m", "lavislite.cli", "--help"]
    found: dict[str, list[float]] = {"python": [], "import": [], "help": []}
    found |= {"import torch": [], "first step": []}
    if not args.quick:
        found["first step, evaluated before"] = []
    with tempfile.TemporaryDirectory() as folder:
        first_step_seconds(folder, TRAINING_ONLY, args.threads)  # makes what is to be cached
        for _ in range(times):
            found["python"].append(seconds_of([python, "-c", "pass"]))
            found["import"].append(import_seconds())
            found["help"].append(seconds_of(command_line))
        for _ in range(1 if args.quick else 5):
            found["import torch"].append(seconds_of([python, "-c", "import torch"]))
            found["first step"].append(first_step_seconds(folder, TRAINING_ONLY, args.threads))
            if not args.quick:
                seconds = first_step_seconds(folder, (), args.threads)
                found["first step, evaluated before"].append(seconds)
    return {name: round(statistics.median(s), 3) for name, s in found.items()} | {
        "limits": LIMITS,
        **facts(args.threads),
    }


def table(found: dict[str, Any]) -> str:
    rows = [
        ("import lavislite", "import", None),
        ("lavislite --help", "help", "python"),
        ("first step of stage 1, cached", "first step", "import torch"),
        ("as shipped: evaluated before", "first step, evaluated before", "import torch"),
    ]
    lines = [f"{'':32}{'seconds':>9}{'limit':>8}  of which at least"]
    for title, name, floor in rows:
        if name in found:
            limit = f"{LIMITS[name]:8.1f}" if name in LIMITS else f"{'':8}"
            least = "" if floor is None else f"  {found[floor]:.3f} ({floor})"
            lines.append(f"{title:32}{found[name]:9.3f}{limit}{least}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = command_line(__doc__, quick="fewer repetitions").parse_args(argv)
    found = measure(args)
    print(table(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
