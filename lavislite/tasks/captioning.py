"""Writing a caption for every picture, and comparing it with those that people wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.generation import GenerationOptions
from lavislite.common.schema import RunConfig
from lavislite.tasks.base import Row, Task, padded
from lavislite.tasks.captioner import DOMAIN_METRICS, Captioner

METRICS = ("CIDEr", "Bleu_4", "METEOR", "ROUGE_L", "SPICE")  # columns of the table, in this order


def caption_generation() -> GenerationOptions:
    """LAVIS's options for captions: five beams, 8 to 30 tokens."""
    return GenerationOptions(num_beams=5, max_new_tokens=30, min_new_tokens=8)


@dataclass
class CaptioningConfig(RunConfig):
    """How captions are written.

    `prompt` begins every caption, in training and evaluation; null leaves it to the model.
    `java_metrics: false` leaves out METEOR and SPICE, which take their time.
    """

    task: str = "captioning"
    generation: GenerationOptions = field(default_factory=caption_generation)
    prompt: str | None = None
    java_metrics: bool = True

    def check(self) -> None:
        super().check()
        check_generation(self.generation)


def check_generation(generation: GenerationOptions) -> None:
    """Raise ConfigError naming the first of ``run.generation`` that cannot be."""
    generation.check("run.generation")
    if generation.num_captions != 1:
        raise ConfigError(
            f"run.generation.num_captions: one caption per picture is scored, saw "
            f"{generation.num_captions}"
        )


@catalog.tasks.register("captioning")
class CaptioningTask(Task):
    """Training with the model's own loss, evaluation by the captions it writes.

    Datasets offer ``pictures()``: one sample per picture, with ``image_ids`` and
    ``references(index)``; and, if they can, ``domains`` (id -> name) and
    ``score_captions({id: caption}) -> {metric: value}``. Models offer ``generate(samples, ...)``.
    """

    Config = CaptioningConfig
    name = "captioning"
    default_monitor = "agg_metrics"
    cfg: CaptioningConfig

    def __init__(self, cfg: CaptioningConfig) -> None:
        super().__init__(cfg)
        self.captioner = Captioner(cfg.generation, cfg.prompt, java=cfg.java_metrics)

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        return model(self.captioner.prompt.samples(samples))

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """See `Captioner.evaluate`."""
        return self.captioner.evaluate(model, dataset, ctx)

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        return self.captioner.examples(model, dataset, ctx, n)

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        return caption_table(metrics)


def caption_table(metrics: Mapping[str, float]) -> list[list[str]]:
    """Scores as a table, one block per split: all pictures, then each domain."""
    table: list[list[str]] = []
    for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "CIDEr"]:
        start = path.removesuffix("CIDEr")
        own = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
        domains = [name.removeprefix("CIDEr_") for name in own if name.startswith("CIDEr_")]
        of_domains = {f"{metric}_{domain}" for metric in DOMAIN_METRICS for domain in domains}
        hidden = {"agg_metrics", "Bleu_1", "Bleu_2", "Bleu_3", *METRICS, *of_domains}
        columns = [name for name in METRICS if name in own]
        columns += [name for name in own if name not in hidden]
        table.append([start.rstrip("/") or "captions", *columns])
        for title in ("all", *domains):
            suffix = "" if title == "all" else f"_{title}"
            cells = [own.get(f"{name}{suffix}") for name in columns]
            table.append([title, *("" if value is None else f"{value:.3f}" for value in cells)])
    return padded(table)
