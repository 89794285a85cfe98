"""Retrieval from pictures on disk to recalls: trained with all three losses, then scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from lavislite.build import build_runner
from lavislite.common.config import resolve
from tests.models.reference import FOLDER

BACKBONE = Path(__file__).parents[1] / "data" / "user_backbone.py"
COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40),
    "black": (5, 5, 5), "white": (250, 250, 250),
}  # fmt: skip
WORDS = dict(zip(COLOURS, ["dog", "cat", "man", "table", "tree", "boat"], strict=True))


def gallery(folder: Path) -> Path:
    """Six pictures of one colour each, with two captions that only they have."""
    records = []
    for colour, pixel in COLOURS.items():
        Image.new("RGB", (32, 32), pixel).save(folder / f"{colour}.png")
        captions = [f"a {WORDS[colour]}", f"the old {WORDS[colour]}"]
        records.append({"image": f"{colour}.png", "caption": captions, "image_id": colour})
    file = folder / "pictures.json"
    file.write_text(json.dumps(records), "utf-8")
    return file


def config(tmp_path: Path, **run: Any) -> Any:
    file = gallery(tmp_path)
    flat = {"name": "blip_image_eval", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    qformer = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 96}
    return resolve(
        {
            "user_dir": str(BACKBONE),
            "model": {
                "arch": "blip2",
                "vision": {"name": "my_cnn", "image_size": 32},
                "qformer": {**qformer, "max_positions": 32, "init": "none", "dropout": 0.0},
                "num_query_tokens": 4,
                "embed_dim": 32,
                "max_txt_len": 12,
                "tokenizer": str(FOLDER),
            },
            "datasets": {
                "image_text_retrieval": {
                    "annotations": {"train": str(file), "val": str(file)},
                    "images": str(tmp_path),
                    "vis_processor": {"train": flat, "eval": flat},
                }
            },
            "run": {
                "task": "retrieval",
                "batch_size_train": 12,
                "batch_size_eval": 4,
                "num_workers": 0,
                "max_steps": 40,
                "init_lr": 3e-3,
                "lr_sched": "constant",
                "log_freq": 10,
                "valid_splits": ["val"],
                "eval_every_steps": 40,
                "eval_freq": 0,
                "eval_at_start": True,
                "output_dir": str(tmp_path / "out"),
                "tensorboard": False,
                "device": "cpu",
                **run,
            },
        },
        origin="test",
    )


def test_training_from_the_start_finds_every_picture(tmp_path: Path) -> None:
    runner = build_runner(config(tmp_path), project="projects/retrieval.yaml")
    assert runner.data is not None
    batch = next(iter(runner.data.batches(0, 1)))
    ids, counts = batch["image_id"].unique(return_counts=True)
    assert len(ids) == 6
    assert counts.tolist() == [2] * 6  # both captions of a picture are right answers for it

    metrics, run = runner.train(), runner.run_dir
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    steps = [record for record in log if record["event"] == "train"]
    for loss in ("loss_itc", "loss_itm", "loss_lm"):
        assert steps[-1][loss] < steps[0][loss]
    before = next(record for record in log if record["event"] == "eval")
    path = "image_text_retrieval/val"
    assert metrics[f"{path}/r_mean"] > before[f"{path}/r_mean"] + 10
    assert metrics[f"{path}/itc_r_mean"] > before[f"{path}/itc_r_mean"] + 20
    assert metrics[f"{path}/itc_txt_r1"] == 100.0

    lines = (run / "results/image_text_retrieval_val_step40.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6 + 12
    assert rows[0]["references"] == ["a dog", "the old dog"]
    assert rows[6]["references"] == ["red"]
    right = sum(row["rank"] == 1 for row in rows[:6])
    assert right >= 4
    assert f"{right} right" in (run / "report/report.html").read_text("utf-8")
