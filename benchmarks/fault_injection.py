"""Kill a training job at random moments, and see whether anything is lost.

    python benchmarks/fault_injection.py                     24 kills, two processes, about ten minutes
    python benchmarks/fault_injection.py --kills 60 --seed 3

A small project (`fault_parts.py`) is trained twice under ``torchrun --max-restarts``: once undisturbed,
and once while its processes, loader workers and the launcher are killed, also during saves, at the start
and all at once. What the launcher does not restart is started again with the same command. Nothing but
that command is given: the job finds its own run folder.

Exit code 1 if a resume went back behind the last complete checkpoint, or if the final weights, the
optimizer, the random states or a value of the log differ in a single bit.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from facts import facts, facts_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fault_injection.md"
# Of a row of the log: how fast it went, which no two runs share.
TIMES = {"seconds", "minutes", "eval_seconds", "samples_per_second", "data_wait", "memory_gb"}
TIMES |= {"tflops", "mfu"}
PROJECT = """
user_dir: {parts}
model: {{arch: fault_model, seconds: {seconds}, ballast: {ballast}}}
datasets:
  one: {{builder: fault_data, size: 320, ratio: 2}}
  two: {{builder: fault_data, size: 512, ratio: 1}}
run:
  task: fault_task
  max_steps: {steps}
  batch_size_train: 8
  batch_size_eval: 64
  accum_grad_iters: 2
  num_workers: 2
  valid_splits: [val]
  eval_every_steps: 50
  save_every_steps: 10
  keep_last: 2
  log_freq: 3
  init_lr: 0.01
  warmup_steps: 20
  clip_grad_norm: 1.0
  tensorboard: false
  report: false
  device: cpu
  precision: fp32
"""

# ------------------------------------------------------------------------------------- processes


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return []
    return found


def is_training(pid: int) -> bool:
    try:
        return b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def rank_of(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [word for word in words if word.startswith(b"RANK=")]
    return int(ranks[0][5:]) if ranks else None


def kill(pids: Sequence[int], signum: int = signal.SIGKILL) -> bool:
    """Send a signal; whether at least one was there to get it."""
    hit = False
    for pid in pids:
        try:
            os.kill(pid, signum)
            hit = True
        except ProcessLookupError:
            continue
    return hit


class Job:
    """A training under torchrun in a folder of its own."""

    def __init__(self, folder: Path, project: str, restarts: int) -> None:
        self.folder, self.restarts, self.starts = folder, restarts, 0
        folder.mkdir(parents=True)
        (folder / "project.yaml").write_text(project)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        line += [f"--max-restarts={self.restarts}", "--rdzv-backend=c10d"]
        line += ["--rdzv-id=faults", f"--rdzv-endpoint=localhost:{self._port}"]
        line += [str(ROOT / "train.py"), "--cfg-path", "project.yaml"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / "out.txt").open("ab") as out:
            self._launcher = subprocess.Popen(
                line, cwd=self.folder, stdout=out, stderr=out, env=environ
            )

    def ended(self) -> int | None:
        """The launcher's exit code, once it has ended."""
        assert self._launcher is not None
        return self._launcher.poll()

    def wait(self, seconds: float) -> int:
        assert self._launcher is not None
        return self._launcher.wait(timeout=seconds)

    @property
    def launcher(self) -> int:
        assert self._launcher is not None
        return self._launcher.pid

    def ranks(self) -> dict[int, int]:
        """Rank -> process."""
        found = {rank_of(pid): pid for pid in children(self.launcher) if is_training(pid)}
        return {rank: pid for rank, pid in found.items() if rank is not None}

    def workers(self) -> list[int]:
        return [p for pid in self.ranks().values() for p in children(pid) if is_training(p)]

    def said(self) -> str:
        return (self.folder / "out.txt").read_text(errors="replace")

    def run_dirs(self) -> list[Path]:
        return list(self.folder.glob("output/project/2*"))

    def saved(self) -> int:
        """Step of the newest complete checkpoint, 0 if there is none."""
        metas = self.folder.glob("output/project/2*/checkpoints/step_*/meta.json")
        return max((int(meta.parent.name.removeprefix("step_")) for meta in metas), default=0)

    def is_saving(self) -> bool:
        return any(self.folder.glob("output/project/2*/checkpoints/.step_*"))

    def rows(self) -> list[dict[str, Any]]:
        (run,) = self.run_dirs()
        return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------------------- faults


@dataclass
class Fault:
    """Something that happens to a job.

    Attributes:
        strike: do it; false if its target was not there.
        ready: wait for this first.
        settled: only once the job trains; else at any moment after it has been started.
    """

    name: str
    strike: Callable[[Job], bool]
    ready: Callable[[Job], bool] = lambda job: True  # noqa: ARG005
    settled: bool = True


def rank(number: int) -> Callable[[Job], bool]:
    return lambda job: kill([pid for r, pid in job.ranks().items() if r == number])


def everything(job: Job) -> bool:
    return kill([job.launcher, *job.ranks().values(), *job.workers()])


def one_worker(job: Job) -> bool:
    workers = job.workers()
    return kill(random.sample(workers, 1)) if workers else False


FAULTS = [
    Fault("main process killed", rank(0)),
    Fault("other process killed", rank(1)),
    Fault("all processes killed", lambda job: kill(list(job.ranks().values()))),
    Fault("loader worker killed", one_worker),
    Fault("launcher killed", lambda job: kill([job.launcher])),
    Fault("power cut: everything killed", everything),
    Fault("main process killed during a save", rank(0), Job.is_saving),
    Fault("other process killed during a save", rank(1), Job.is_saving),
    Fault("power cut during a save", everything, Job.is_saving),
    Fault("a process killed while it starts", rank(0), settled=False),
    Fault("launcher killed during the start", lambda job: kill([job.launcher]), settled=False),
    Fault("job asked to stop (SIGTERM)", lambda job: kill([job.launcher], signal.SIGTERM)),
]


@dataclass
class Strike:
    """One fault and what came of it."""

    name: str
    saved: int  # the newest complete checkpoint when it struck
    resumed: int | None = None
    seconds: float | None = None  # until training went on


@dataclass
class Story:
    strikes: list[Strike] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.005)


def disturb(job: Job, kills: int, chance: random.Random) -> Story:
    """Train to the end, with `kills` faults on the way: each kind once, then at random."""
    story = Story()
    faults = [*FAULTS, *chance.choices(FAULTS, k=max(kills - len(FAULTS), 0))][:kills]
    chance.shuffle(faults)
    job.start()
    for fault in faults:
        if not strike(job, fault, chance, story):
            break
        last = story.strikes[-1]
        print(f"{len(story.strikes):3d}  {last.name}, checkpoint {last.saved}", flush=True)
    keep_alive(job, lambda: job.ended() == 0, seconds=3600)
    follow(job, story)
    return story


def strike(job: Job, fault: Fault, chance: random.Random, story: Story) -> bool:
    """Wait for the moment, and strike; false when the training has ended before."""
    mark, began = len(job.said()), time.monotonic()

    def trains() -> bool:
        return re.search(r"^step \d+/", job.said()[mark:], re.MULTILINE) is not None

    if fault.settled:
        keep_alive(job, lambda: job.ended() == 0 or trains())
        if story.strikes:
            story.strikes[-1].seconds = time.monotonic() - began
    while job.ended() != 0:
        keep_alive(job, lambda: job.ended() == 0 or job.ranks())
        time.sleep(chance.uniform(0, 4))
        wait_for(lambda: job.ended() is not None or fault.ready(job), fault.name)
        saved = job.saved()
        with (job.folder / "out.txt").open("a") as out:
            out.write(f"\n=== {fault.name}\n")
        if job.ended() is None and fault.strike(job):
            story.strikes.append(Strike(fault.name, saved))
            return True
        with (job.folder / "out.txt").open("a") as out:
            out.write("=== missed\n")
    return False


def keep_alive(job: Job, condition: Callable[[], Any], seconds: float = 300) -> None:
    """Wait for `condition`; start the job again whenever its launcher has ended."""
    until = time.monotonic() + seconds
    while not condition():
        code = job.ended()
        if code is not None and code != 0:
            job.start()
        if time.monotonic() > until:
            raise TimeoutError(f"The job does not get on:\n{job.said()[-3000:]}")
        time.sleep(0.02)


def follow(job: Job, story: Story) -> None:
    """Where the job went on after each strike, from what it has said."""
    said = re.sub(r"^=== .*\n=== missed\n", "", job.said(), flags=re.MULTILINE)
    parts = re.split(r"^=== .*$", said, flags=re.MULTILINE)[1:]
    for struck, text in zip(story.strikes, parts, strict=True):
        found = re.search(r"Continuing after step (\d+)", text)
        if found is not None:
            struck.resumed = int(found[1])
        elif re.search(r"^step 3/", text, re.MULTILINE):
            struck.resumed = 0
        if struck.resumed is not None and struck.resumed < struck.saved:
            story.problems.append(
                f"after '{struck.name}' it went on from step {struck.resumed}, though the "
                f"checkpoint of step {struck.saved} was complete"
            )


# ------------------------------------------------------------------------------------ comparison


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two nested structures of tensors and values differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                yield f"{where}/{key} (only in one)"
            else:
                yield from differences(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{where} ({len(one)} and {len(other)} entries)"
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}/{i}")
    elif one != other:
        yield f"{where} ({one!r} and {other!r})"


def values(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same in two logs: each row of training and evaluation, without its times."""
    kept = [row for row in rows if row["event"] in ("train", "eval")]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in kept]


def compare(undisturbed: Job, disturbed: Job, steps: int) -> dict[str, list[str]]:
    """What was compared -> where it differs."""
    if len(disturbed.run_dirs()) != 1:
        return {"run folders": [f"{len(disturbed.run_dirs())} instead of one"]}
    folders = [job.run_dirs()[0] / f"checkpoints/step_{steps}" for job in (undisturbed, disturbed)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    states = [torch.load(folder / "trainer.pt", weights_only=True) for folder in folders]
    for state in states:
        state.pop("log_bytes", None)  # the log's times are not always as many digits long
    rows = [values(job.rows()) for job in (undisturbed, disturbed)]
    return {
        "final weights, byte by byte": [] if weights[0] == weights[1] else ["model.safetensors"],
        "optimizer, random states, best score": list(differences(*states)),
        f"log, {len(rows[0])} rows, every value but times": list(differences(*rows)),
    }


# ------------------------------------------------------------------------------------------ report


def report(story: Story, compared: dict[str, list[str]], note: str) -> str:
    lines = ["# Fault injection", "", note, ""]
    lines += ["| compared with the undisturbed run | |", "|---|---|"]
    for what, found in compared.items():
        lines.append(f"| {what} | {'equal' if not found else '**differs**: ' + found[0]} |")
    behind = sum(s.resumed is not None and s.resumed < s.saved for s in story.strikes)
    lines.append(f"| resumes behind the last complete checkpoint | {behind} |")
    lines += ["", "| | fault | last checkpoint | went on from | seconds until it trained again |"]
    lines.append("|---|---|---|---|---|")
    for i, struck in enumerate(story.strikes, 1):
        resumed = "struck again before" if struck.resumed is None else f"step {struck.resumed}"
        seconds = "-" if struck.seconds is None else f"{struck.seconds:.0f}"
        lines.append(f"| {i} | {struck.name} | step {struck.saved} | {resumed} | {seconds} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--steps", type=int, default=600, help="of the training")
    parser.add_argument("--seconds", type=float, default=0.05, help="least time of a batch")
    parser.add_argument("--ballast", type=float, default=4.0, help="millions of parameters")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="leave the runs in this folder")
    args = parser.parse_args(argv)
    parts = Path(__file__).with_name("fault_parts.py").resolve()
    project = PROJECT.format(
        parts=parts, steps=args.steps, seconds=args.seconds, ballast=args.ballast
    )
    folder = args.keep or Path(tempfile.mkdtemp(prefix="fault-injection-"))
    quick = project.replace(f"seconds: {args.seconds}", "seconds: 0")
    undisturbed = Job(folder / "undisturbed", quick, restarts=0)
    disturbed = Job(folder / "job", project, restarts=1000)
    random.seed(args.seed)
    try:
        undisturbed.start()
        if undisturbed.wait(1200) != 0:
            print(undisturbed.said()[-3000:], file=sys.stderr)
            return 1
        story = disturb(disturbed, args.kills, random.Random(args.seed))
        compared = compare(undisturbed, disturbed, args.steps)
    finally:
        for job in (undisturbed, disturbed):
            everything(job)
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    note = (
        f"`python benchmarks/fault_injection.py --kills {args.kills} --seed {args.seed}`: "
        f"{len(story.strikes)} faults in {args.steps} steps of two processes with two loader "
        f"workers each; the command was given {disturbed.starts} times, torchrun did the other "
        f"restarts. {facts_line(facts(1))}."
    )
    text = report(story, compared, note)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)
    for problem in story.problems:
        print(f"problem: {problem}", file=sys.stderr)
    failed = story.problems or any(compared.values()) or len(story.strikes) < args.kills
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
