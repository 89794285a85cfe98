"""Small pictures and annotation files for the tests of datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from lavislite.datasets.base import DatasetBuilder

SIZE = {
    "vis_processor": {
        phase: {"name": "blip_image_eval", "image_size": 8} for phase in ("train", "eval")
    }
}


def draw(folder: Path, n: int, suffix: str = "jpg") -> list[str]:
    """`n` pictures in one colour each; returns their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{k}.{suffix}" for k in range(n)]
    for k, name in enumerate(names):
        Image.new("RGB", (12, 10), (k * 20 % 256, 100, 200)).save(folder / name)
    return names


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def build(
    builder: type[DatasetBuilder], split: str = "train", *, train: bool = True, **options: Any
):
    """A split of the dataset "mine", with tiny pictures."""
    cfg = builder.Config(**{**SIZE, **options})
    return builder(cfg, name="mine").build(split, train=train)
