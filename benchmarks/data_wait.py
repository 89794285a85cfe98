"""The share of its time that training waits for data, as a run's own log says it.

    python benchmarks/data_wait.py --quick --json data_wait.json

Runs of ``train.py``: stage 1 on the playground as its project file says, and stage 1 on made-up
photographs of COCO's size (640 x 480, JPEG, 8 to 15 words each) behind a frozen ViT-Ti and ViT-S
at 224 pixels, one loading process beside two threads that train. The first steps, until the log's
first line, do not count. On a GPU the question is another: how many cores feed it
(`data_rate.py --rate`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from data_rate import KINDS, write
from facts import command_line, facts, write_json
from side_by_side import table
from startup import PROJECT, ROOT, TRAINING_ONLY

LIMIT = 0.02
COCO = KINDS[0]
STEPS = {"playground": (60, 15), "photographs": (18, 3)}  # in all, and to a line of the log
TOWERS = ("vit_tiny", "vit_small")
WORDS = [f"word{index}" for index in range(2000)]


def write_project(folder: Path, pictures: int, tower: str) -> Path:
    """Photographs with captions, and stage 1 on them."""
    rng = random.Random(0)
    records = [
        {"image": name, "caption": " ".join(rng.choices(WORDS, k=rng.randint(8, 15)))}
        for name in write(folder, COCO, pictures)
    ]
    (folder / "captions.json").write_text(json.dumps(records), encoding="utf-8")
    half = [0.5] * 3  # as timm's vision transformers want it
    process = {"name": "blip2_image_train", "image_size": COCO.side, "mean": half, "std": half}
    photographs = {
        "builder": "image_caption",
        "annotations": {"train": str(folder / "captions.json")},
        "images": str(folder),
        "vis_processor": {"train": process},
    }
    vision = {"name": tower, "image_size": COCO.side, "weights": "none"}
    project = {
        "base": str(ROOT / PROJECT),
        "model": {"vision": vision},
        "datasets": {
            "playground_caption": None,
            "playground_retrieval": None,
            "photographs": photographs,
        },
        "run": {"batch_size_train": 32},
    }
    file = folder / f"{tower.rpartition(':')[2]}.yaml"
    file.write_text(yaml.safe_dump(project), encoding="utf-8")
    return file


def run(project: str | Path, steps: int, every: int, folder: Path, threads: int) -> dict[str, Any]:
    """Pictures per second and data wait: medians over the lines of the log but the first."""
    command = [sys.executable, "train.py", "--cfg-path", str(project), "--options", *TRAINING_ONLY]
    command += [f"run.output_dir={folder}", f"run.max_steps={steps}", f"run.log_freq={every}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    (log,) = folder.glob(f"{Path(project).stem}/latest/log.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    counted = [line for line in lines if line["event"] == "train"][1:]
    return {
        name: round(statistics.median(line[key] for line in counted), 4)
        for name, key in (("pictures_per_second", "samples_per_second"), ("data_wait", "data_wait"))
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    pictures = 96 if args.quick else 256
    with tempfile.TemporaryDirectory() as made:
        folder, found = Path(made), {}
        run(PROJECT, 2, 1, folder, args.threads)  # makes what is to be cached
        found["playground"] = run(PROJECT, *STEPS["playground"], folder, args.threads)
        for tower in TOWERS[:1] if args.quick else TOWERS:
            file = write_project(folder, pictures, f"timm:{tower}_patch16_224")
            title = f"COCO-sized JPEG, {tower}"
            found[title] = run(file, *STEPS["photographs"], folder, args.threads)
    return {"runs": found, "limit": LIMIT, **facts(args.threads)}


def main(argv: Sequence[str] | None = None) -> int:
    args = command_line(__doc__, quick="fewer pictures, the faster tower").parse_args(argv)
    found = measure(args)
    rows = [["run", "pictures/s", f"data wait (limit {LIMIT:.0%})"]]
    for name, of in found["runs"].items():
        rows.append([name, f"{of['pictures_per_second']:.0f}", f"{of['data_wait']:.1%}"])
    print(table(rows))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
