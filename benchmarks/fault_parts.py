"""What `fault_injection.py` trains: all that is random in a real run, in milliseconds.

Augmentation (in loader processes), dropout, negatives drawn at random, batch statistics, two data
sets mixed by ratio; and weights enough that a checkpoint takes a moment to write.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavislite import registry
from lavislite.common.schema import RunConfig
from lavislite.models.base import BaseModel
from lavislite.tasks.base import Task

WIDTH = 16


@dataclass
class _Vision:
    name: str = "tiny"
    image_size: int = 4
    weights: str | None = "none"


@dataclass
class ModelConfig:
    """`ballast` more parameters, in millions; a step lasts `seconds`."""

    arch: str = "fault_model"
    model_type: str | None = None
    pretrained: str | None = None
    ballast: float = 4.0
    seconds: float = 0.05
    vision: _Vision = field(default_factory=_Vision)


@registry.register_model("fault_model")
class FaultModel(BaseModel):
    Config = ModelConfig

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.seconds = cfg.seconds
        self.visual_encoder = nn.Identity()
        self.visual_encoder.image_mean = (0.5, 0.5, 0.5)  # type: ignore[assignment]
        self.norm = nn.BatchNorm1d(WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Dropout(0.3))
        self.head = nn.Linear(64, 1)
        self.ballast = nn.Parameter(torch.zeros(int(cfg.ballast * 1e6)))

    @classmethod
    def from_config(cls, cfg: ModelConfig) -> FaultModel:
        return cls(cfg)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(x)))[:, 0] + self.ballast[:WIDTH].sum()

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        x = samples["x"]
        negative = x[torch.randint(len(x), (len(x),))].flip(1)
        right = nn.functional.softplus(-self.scores(x)).mean()
        wrong = nn.functional.softplus(self.scores(negative)).mean()
        return {"loss": right + wrong, "loss_right": right, "loss_wrong": wrong}


@dataclass
class _Processor:
    image_size: int = 4
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass
class DataConfig:
    builder: str | None = None
    type: str = "default"
    ratio: float | None = None
    size: int = 512
    vis_processor: dict[str, Any] = field(default_factory=dict)


class FaultData(torch.utils.data.Dataset):
    evaluation = "loss"

    def __init__(self, name: str, split: str, cfg: DataConfig, *, train: bool) -> None:
        self.name, self.split, self._train = name, split, train
        self.vis_processor = _Processor(**cfg.vis_processor)
        generator = torch.Generator().manual_seed(cfg.size)
        self._x = torch.randn(cfg.size, WIDTH, generator=generator).cumsum(1)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        x = self._x[i]
        if self._train:
            noise = torch.randn(WIDTH) * random.uniform(0, 0.5) + float(np.random.rand())
            x = x + noise
        return {"x": x, "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def record_id(self, i: int) -> str:
        return f"{self.split}:{i}"


@registry.register_builder("fault_data")
class FaultBuilder:
    Config = DataConfig

    def __init__(self, cfg: DataConfig, *, name: str) -> None:
        self._cfg, self._name = cfg, name

    def splits(self) -> list[str]:
        return ["train", "val"]

    def prepare(self) -> None:
        """Nothing to fetch."""

    def build(self, split: str, *, train: bool) -> FaultData:
        return FaultData(self._name, split, self._cfg, train=train)


@registry.register_task("fault_task")
class FaultTask(Task):
    Config = RunConfig
    name = "fault_task"

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        loss = nn.functional.softplus(-model.scores(samples["x"]))
        return [{"loss": float(x)} for x in loss]

    def score(self, rows: list[dict[str, Any]], dataset: Any) -> dict[str, float]:  # noqa: ARG002
        return {"loss": sum(row["loss"] for row in rows) / len(rows)}
