"""Small model, data and task that exercise the whole runner: dropout, augmentation, frozen part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.schema import RunConfig
from lavislite.datasets.loading import TrainLoader
from lavislite.models.base import BaseModel
from lavislite.runners.runner import Runner


class Model(BaseModel):
    """A frozen projection, then a trained layer with dropout."""

    def __init__(self, backbone: str = "tower@1", dropout: float = 0.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.tower = nn.Linear(4, 8).requires_grad_(False)
        self.head = nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        self._backbone = backbone

    def frozen_modules(self) -> list[nn.Module]:
        return [self.tower]

    def identity(self) -> dict[str, str]:
        return {"vision": self._backbone}

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        y = self.head(self.dropout(self.tower(samples["image"]).tanh()))
        part = nn.functional.cross_entropy(y, samples["label"])
        return {"loss": part + 1.0, "loss_part": part}


class Data:
    """Vectors with a class; random noise stands for augmentation."""

    evaluation = "loss"

    def __init__(self, n: int = 24, name: str = "toy", split: str = "train", bad: Any = ()) -> None:
        generator = torch.Generator().manual_seed(n)
        self.name, self.split, self.bad = name, split, bad
        self.found_bad: set[int] = set()
        self.x = torch.randn(n, 4, generator=generator)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def bad_records(self) -> int:
        return len(self.found_bad)

    def __getitem__(self, i: int) -> dict[str, Any] | None:
        if i in self.bad:
            self.found_bad.add(i)
            return None
        noise = torch.randn(4) * 0.1 if self.split == "train" else torch.zeros(4)
        return {"image": self.x[i] + noise, "label": self.y[i], "index": i}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return torch.utils.data.default_collate([s for s in samples if s is not None])

    def record_id(self, i: int) -> str:
        return f"{self.name}#{i}"


class Task:
    """Cross-entropy; scores are losses unless a test supplies others."""

    name = "toy"

    def __init__(self, scores: list[float] | None = None) -> None:
        self.scores = scores
        self.evaluated: list[str] = []

    def train_step(self, model: nn.Module, samples: dict[str, Any]) -> dict[str, Tensor]:
        return model(samples)

    def monitor_for(self, evaluations: Any) -> str:  # noqa: ARG002
        return "accuracy" if self.scores is not None else "loss"

    def higher_is_better(self, metric: str) -> bool:
        return "loss" not in metric

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        self.evaluated.append(f"{dataset.name}/{dataset.split}")
        model.eval()
        torch.rand(7)  # an evaluation that uses up random numbers must not change training
        with torch.no_grad(), ctx.autocast():
            batch = dataset.collate([dataset[i] for i in range(len(dataset))])
            loss = model({k: v.to(ctx.device) for k, v in batch.items()})["loss_part"].item()
        metrics = {"loss": loss}
        if self.scores is not None and ctx.limit_batches is None:
            metrics["accuracy"] = self.scores.pop(0)
        elif self.scores is not None:
            metrics["accuracy"] = 0.0
        return EvalResult(metrics, [{"index": 0, "loss": loss}])

    def examples(self, *_: Any) -> list[dict]:
        return []

    def summary(self, *_: Any) -> list[list[str]]:
        return []


def run_config(**options: Any) -> RunConfig:
    small = {
        "max_epoch": 2,
        "batch_size_train": 4,
        "batch_size_eval": 4,
        "num_workers": 0,
        "init_lr": 0.1,
        "warmup_steps": 2,
        "log_freq": 1,
        "report": False,
        "tensorboard": False,
        "device": "cpu",
        "precision": "fp32",
        "keep_last": 100,
    }
    return RunConfig(**(small | options))


def make_runner(
    run_dir: Path,
    *,
    model: Model | None = None,
    task: Task | None = None,
    train: Data | None = None,
    evaluated: dict[str, dict[str, Data]] | None = None,
    config_yaml: str = "run: {}\n",
    **options: Any,
) -> Runner:
    cfg = run_config(**options)
    data = TrainLoader(
        [train or Data()],
        batch_size=cfg.batch_size_train,
        num_workers=cfg.num_workers,
        seed=cfg.seed,
        pin_memory=False,
    )
    toy = {"val": Data(8, split="val"), "test": Data(8, split="test")}
    return Runner(
        cfg,
        task=task or Task(),
        model=model or Model(),
        datasets=evaluated or {"toy": toy},
        run_dir=run_dir,
        config_yaml=config_yaml,
        train_data=data,
    )
