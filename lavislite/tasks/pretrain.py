"""Vision-language pre-training: the model's own losses, watched on what a split is good for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from lavislite.common import catalog, distributed
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.generation import GenerationOptions
from lavislite.common.loading import batch_indices, evaluation_batches
from lavislite.tasks.base import Row, evaluating, gather_rows, split_name
from lavislite.tasks.captioner import Captioner
from lavislite.tasks.captioning import caption_generation, caption_table, check_generation
from lavislite.tasks.examples import caption_examples, pick
from lavislite.tasks.retrieval import RetrievalConfig, RetrievalTask, recall_table

LOSS_SEED = 0x10553  # negatives and batches of a loss evaluation are the same in every run


@dataclass
class PretrainConfig(RetrievalConfig):
    """Retrieval options serve the validation on retrieval splits, the others that on captions.

    `prompt` begins every caption that is written in evaluation; null leaves it to the model, as
    training always does. `java_metrics` adds METEOR and SPICE, which take their time.
    """

    task: str = "image_text_pretrain"
    generation: GenerationOptions = field(default_factory=caption_generation)
    prompt: str | None = None
    java_metrics: bool = False

    def check(self) -> None:
        super().check()
        check_generation(self.generation)


@catalog.tasks.register("image_text_pretrain")
class ImageTextPretrainTask(RetrievalTask):
    """Both stages (and any model whose forward returns its losses).

    A split is scored by what its dataset says: ``loss``, the mean of every loss over fixed batches,
    ``retrieval``, the recalls of `RetrievalTask`, or ``caption``, the scores of `CaptioningTask`.
    """

    Config = PretrainConfig
    name = "image_text_pretrain"
    evaluations = ("loss", "retrieval", "caption")
    default_monitor = "loss"
    cfg: PretrainConfig

    def __init__(self, cfg: PretrainConfig) -> None:
        super().__init__(cfg)
        self.captioner = Captioner(cfg.generation, cfg.prompt, java=cfg.java_metrics)

    def monitor_for(self, evaluations: Iterable[str]) -> str:
        """Recalls if a retrieval split is validated, else captions: losses only hint at quality."""
        kinds = set(evaluations)
        return "r_mean" if "retrieval" in kinds else "agg_metrics" if "caption" in kinds else "loss"

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        if dataset.evaluation == "caption":
            return self.captioner.evaluate(model, dataset, ctx)
        self.check(dataset)
        if dataset.evaluation == "retrieval":
            return super().evaluate(model, dataset, ctx)
        with evaluating(model):
            return evaluate_loss(model, dataset, ctx)

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        if dataset.evaluation == "caption":
            return self.captioner.examples(model, dataset, ctx, n)
        if dataset.evaluation == "retrieval":
            return super().examples(model, dataset, ctx, n)
        with evaluating(model):
            return caption_examples(model, dataset, ctx, pick(len(dataset), n))

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        rows = recall_table(metrics) + caption_table(metrics) + loss_table(metrics)
        width = max(map(len, rows), default=0)
        return [row + [""] * (width - len(row)) for row in rows]


def evaluate_loss(model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
    """Mean of each of the model's losses over the samples; within `evaluating`.

    Contrastive losses depend on the company: the batches are fixed (a shuffle that never changes,
    so that captions of one image are spread), dealt out whole, and each is seeded by its number.

    Raises:
        DataError: a whole batch is unreadable.
    """
    shuffle = torch.Generator().manual_seed(LOSS_SEED)
    order = torch.randperm(len(dataset), generator=shuffle).tolist()
    batches = batch_indices(len(dataset), ctx.batch_size, ctx.limit_batches, order)
    rows: list[Row] = []
    for k, samples in evaluation_batches(dataset, ctx, batches, split_name(dataset)):
        distributed.seed_everything(LOSS_SEED + k)
        with ctx.autocast():
            output = model(samples)
        losses = {key: float(value) for key, value in output.items() if key.startswith("loss")}
        rows.append({"batch": k, "samples": len(samples["index"]), **losses})
    rows = gather_rows(rows, "batch", range(len(batches)), dataset)
    total = sum(row["samples"] for row in rows)
    names = [key for key in rows[0] if key.startswith("loss")]
    metrics = {key: sum(row[key] * row["samples"] for row in rows) / total for key in names}
    return EvalResult(metrics, rows)


def loss_table(metrics: dict[str, float]) -> list[list[str]]:
    """Held-out losses, one block per split."""
    table: list[list[str]] = []
    for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "loss"]:
        start = path.removesuffix("loss")
        names = [key for key in metrics if key.startswith(f"{start}loss")]
        table.append([start.rstrip("/") or "held-out", *(n.removeprefix(start) for n in names)])
        table.append(["held-out loss", *(f"{metrics[name]:.3f}" for name in names)])
    return table
