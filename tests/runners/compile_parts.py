"""Small models of both stages, and steps with texts of random lengths: ``run.compile``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from runner_parts import Task, run_config

from lavislite.common import distributed
from lavislite.models.language.base import LanguageConfig
from lavislite.runners.optim import make_autocast
from lavislite.runners.step import TrainStep

WORDS = ["a", "red", "cat", "on", "the", "small", "table", "two", "dogs", "an", "old", "man"]
STAGE2 = {"opt": "Blip2OPT", "t5": "Blip2T5"}


def build(kind: str, folder: Path, quantization: str | None = None) -> Any:
    """A model of stage 1 or, of `kind` "opt" or "t5", of stage 2; without dropout."""
    from lavislite.models.blip2 import stage2
    from lavislite.models.blip2.stage1 import Blip2Qformer
    from lavislite.models.vision.base import VisionConfig
    from tests.models.language.tiny import save_tiny
    from tests.models.reference import tiny_config

    path = folder / kind
    if kind in STAGE2 and not path.exists():
        save_tiny(path, kind)
    torch.manual_seed(5)
    vision = VisionConfig(
        name="tiny",
        image_size=16,
        weights="none",
        quantization=quantization,
        options={"width": 32, "heads": 2},
    )
    cfg = tiny_config(vision=vision)
    cfg.qformer.num_layers = 2
    if kind == "stage1":
        return Blip2Qformer.from_config(cfg)
    language = LanguageConfig(name=str(path), precision="fp32", quantization=quantization, end=None)
    shared = {"vision": vision, "qformer": cfg.qformer, "num_query_tokens": 8, "max_txt_len": 16}
    name = STAGE2[kind]
    config = getattr(stage2, f"{name}Config")(language=language, **shared)
    return getattr(stage2, name).from_config(config)


def make_step(
    model: Any, device: str = "cpu", precision: str = "fp32", **options: Any
) -> TrainStep:
    place = torch.device(device)
    return TrainStep(
        run_config(clip_grad_norm=1.0, **options),
        task=Task(),
        model=model.train(),
        device=place,
        precision=precision,
        autocast=make_autocast(precision, place),
        record_id=str,
    )


def batch(number: int, longest: int = 12, size: int = 4) -> dict[str, Any]:
    """Random pictures, and captions of 2 to `longest` words, one of them of just so many."""
    rng, generator = random.Random(number), torch.Generator().manual_seed(number)
    lengths = [longest, *(rng.randint(2, longest) for _ in range(size - 1))]
    return {
        "image": torch.randn(size, 3, 16, 16, generator=generator),
        "text_input": [" ".join(rng.choices(WORDS, k=length)) for length in lengths],
    }


def losses(step: TrainStep, numbers: range, lengths: tuple[int, ...]) -> list[float]:
    """The loss of each step; the longest text is one of `lengths` by turns."""
    found = []
    for number in numbers:
        distributed.seed_everything(number, rank=0)  # of the negatives
        step(number, 1e-3, [batch(number, lengths[number % len(lengths)])])
        found.append(step.read()["loss"])
    return found
