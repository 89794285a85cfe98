"""Numbered pictures with captions, and a model that says the number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Pictures(torch.utils.data.Dataset):
    name, split, evaluation = "fake", "val", "caption"

    def __init__(self, ids: list[str], references: list[list[str]], broken: Any = ()) -> None:
        self.image_ids, self._references, self.broken = ids, references, broken
        self.image_paths = [Path(f"images/{k}.jpg") for k in range(len(ids))]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> dict[str, Any] | None:
        return None if i in self.broken else {"image": torch.full((3, 2, 2), i), "index": i}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        good = [s for s in samples if s is not None]
        return torch.utils.data.default_collate(good) if good else {}

    def record_id(self, i: int) -> str:
        return f"picture {self.image_ids[i]}"

    def references(self, i: int) -> list[str]:
        return self._references[i]


class Captions:
    """Seven pictures; those of the model's captions are true whose number is below `true`."""

    name, split, evaluation = "fake", "val", "loss"

    def __init__(self, ids: list[str] | None = None, true: int = 4, **options: Any) -> None:
        ids = ids or [f"id{k}" for k in range(7)]
        truth = [[f"a {k}", f"{k}!"] if k < true else ["else"] for k in range(len(ids))]
        self._pictures = Pictures(ids, truth, **options)

    def __len__(self) -> int:
        return 2 * len(self._pictures)

    def pictures(self) -> Pictures:
        return self._pictures


class Writer(nn.Module):
    """Says the number in the picture's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def generate(self, samples: dict[str, Any], **options: Any) -> list[str]:
        self.calls.append({"samples": set(samples), **options})
        return [f"a {int(image[0, 0, 0])}" for image in samples["image"]]

    def forward(self, samples: dict[str, Any]) -> dict[str, Any]:
        return {"loss": torch.tensor(0.0), "samples": samples}
