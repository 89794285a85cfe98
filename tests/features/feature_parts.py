"""A frozen tower of nothing much, pictures, and splits that may read stored features of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lavislite.common.schema import FeatureCacheConfig, RunConfig
from lavislite.datasets.caption import ImageCaptionBuilder
from lavislite.features.cache import use_feature_cache
from lavislite.features.splits import CachedSplit
from lavislite.models.vision.base import VisionConfig, vision_fingerprint

EVAL = {"name": "blip_image_eval", "image_size": 8}
TRAIN = {"name": "blip2_image_train", "image_size": 8}


class Model(nn.Module):
    """The parts of a BLIP-2 model that the cache knows of; counts the pictures it looks at."""

    vision_is_frozen = True

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual_encoder = nn.Conv2d(3, 6, 4, 4).requires_grad_(False)
        self.factor = factor  # what no fingerprint of the weights can see
        self.looked_at = 0
        self.fails_after: int | None = None

    @property
    def device(self) -> torch.device:
        return self.visual_encoder.weight.device

    def identity(self) -> dict[str, str]:
        return {"vision": f"patches@{vision_fingerprint(self.visual_encoder)}"}

    def tower_features(self, images: Tensor) -> Tensor:
        if self.fails_after is not None and self.looked_at >= self.fails_after:
            raise KeyboardInterrupt
        self.looked_at += len(images)
        return self.visual_encoder(images).flatten(2).mT * self.factor


def draw(folder: Path, n: int) -> list[str]:
    """`n` pictures, each of other noise; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        repaint(folder / f"{k}.png", k)
    return [f"{k}.png" for k in range(n)]


def repaint(path: Path, seed: int, size: int = 12) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def captions(folder: Path, n: int = 6, name: str = "mine", **options: Any) -> CachedSplit:
    """`n` pictures in `folder`, made if there are none, with two captions each."""
    names = [f"{k}.png" for k in range(n)]
    if not (folder / "images").is_dir():
        draw(folder / "images", n)
    records = [{"image": image, "caption": ["one", "two"]} for image in names]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(records))
    processor = {"train": options.pop("processor", EVAL)}
    cfg = ImageCaptionBuilder.Config(
        annotations={"train": str(file)},
        images=str(folder / "images"),
        vis_processor=processor,
        **options,
    )
    return CachedSplit(ImageCaptionBuilder(cfg, name=name).build("train", train=True))


def use(
    *splits: CachedSplit,
    model: Model | None = None,
    dry_run: bool = False,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Let `splits` read features (stored as fp32 unless said otherwise); returns the model."""
    model = model or Model()
    cache = FeatureCacheConfig(**{"dtype": "fp32", **options})
    run = RunConfig(feature_cache=cache, batch_size_train=2, num_workers=0, device="cpu", seed=seed)
    use_feature_cache(splits, model, VisionConfig(), run, dry_run=dry_run)
    return model


def computed(model: Model) -> int:
    """Pictures the tower looked at to compute features, beside the one that it is tried with."""
    return model.looked_at - 1


def store_of(folder: Path) -> Path:
    """The only store in the cache folder."""
    (header,) = folder.glob("*/header.json")
    return header.parent
