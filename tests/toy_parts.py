# ruff: noqa: ARG002
"""A user's own model, dataset and task, as small as they come; tests pass it as ``--user-dir``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavislite import registry
from lavislite.common.schema import RunConfig
from lavislite.models.base import BaseModel
from lavislite.tasks.base import Task


@dataclass
class ToyVision:
    name: str = "tiny"
    image_size: int = 8
    weights: str | None = "none"


@dataclass
class ToyConfig:
    arch: str = "toy"
    model_type: str | None = None
    width: int = 4
    pretrained: str | None = None
    vision: ToyVision = field(default_factory=ToyVision)


@registry.register_model("toy")
class Toy(BaseModel):
    Config = ToyConfig

    def __init__(self, cfg: ToyConfig) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Linear(2, cfg.width), nn.Tanh(), nn.Linear(cfg.width, 1))
        self.visual_encoder = nn.Identity()
        self.visual_encoder.image_mean = (0.5, 0.5, 0.5)

    @classmethod
    def from_config(cls, cfg: ToyConfig) -> Toy:
        return cls(cfg)

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": (self.line(samples["x"])[:, 0] - samples["y"]).square().mean()}


@dataclass
class ToyProcessor:
    image_size: int = 8
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass
class ToyDataConfig:
    builder: str | None = None
    type: str = "default"
    ratio: float | None = None
    size: int = 32
    vis_processor: dict[str, Any] = field(default_factory=dict)
    prepared: str | None = None  # a file in which each call of `prepare` leaves a line


class ToyData(torch.utils.data.Dataset):
    evaluation = "loss"

    def __init__(self, name: str, split: str, cfg: ToyDataConfig) -> None:
        self.name, self.split = name, split
        self.vis_processor = ToyProcessor(**cfg.vis_processor)
        generator = torch.Generator().manual_seed(len(split))
        self.x = torch.randn(cfg.size, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "y": self.x[i].prod(), "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def record_id(self, i: int) -> str:
        return f"{self.split}:{i}"

    def captions(self) -> Iterator[str]:
        yield "a toy"


@registry.register_builder("toy_data")
class ToyBuilder:
    Config = ToyDataConfig

    def __init__(self, cfg: ToyDataConfig, *, name: str) -> None:
        self.cfg, self.name = cfg, name

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def prepare(self) -> None:
        if self.cfg.prepared is not None:
            with Path(self.cfg.prepared).open("a") as file:
                file.write("prepared\n")

    def build(self, split: str, *, train: bool) -> ToyData:
        return ToyData(self.name, split, self.cfg)


@registry.register_task("toy_task")
class ToyTask(Task):
    Config = RunConfig
    name = "toy_task"

    def predict(self, model: nn.Module, samples: dict[str, Any]) -> list[dict[str, Any]]:
        error = (model.line(samples["x"])[:, 0] - samples["y"]).square()
        return [{"loss": float(e)} for e in error]

    def score(self, rows: list[dict[str, Any]], dataset: Any) -> dict[str, float]:
        return {"loss": sum(row["loss"] for row in rows) / len(rows)}
