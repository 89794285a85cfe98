"""The playground: a small drawn world in the layouts of the real datasets, made on first use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lavislite.common import catalog
from lavislite.datasets.base import DatasetBuilder, DatasetConfig
from lavislite.datasets.caption import ImageCaptionBuilder
from lavislite.datasets.image_text import ImageTextRetrievalBuilder
from lavislite.datasets.playground.attributes import AttributesDataset
from lavislite.datasets.playground.generate import WorldSpec, ensure_world
from lavislite.datasets.playground.scenes import SPLITS


@dataclass
class PlaygroundConfig(DatasetConfig):
    """Which world; the datasets of a run should agree on it, or they show different ones."""

    seed: int = 0
    num_train: int = 12_000
    num_val: int = 200
    num_test: int = 500
    image_size: int = 64

    @property
    def world(self) -> WorldSpec:
        return WorldSpec(
            seed=self.seed,
            num_train=self.num_train,
            num_val=self.num_val,
            num_test=self.num_test,
            image_size=self.image_size,
        )


def located(cfg: PlaygroundConfig, kind: str) -> PlaygroundConfig:
    """`cfg` with the paths of the world's files of that kind: captions, karpathy or scenes."""
    folder = cfg.world.folder
    files = {split: str(folder / "annotations" / f"{kind}_{split}.json") for split in SPLITS}
    return replace(cfg, annotations=files, images=str(folder / "images"))


class _Generated(DatasetBuilder):
    """Draws the world, if need be, before its files are read."""

    cfg: PlaygroundConfig

    def prepare(self) -> None:
        ensure_world(self.cfg.world)


@catalog.datasets.register("playground_caption")
class PlaygroundCaptionBuilder(_Generated, ImageCaptionBuilder):
    """Pictures with one caption at a time, as `coco_caption`."""

    Config = PlaygroundConfig

    def __init__(self, cfg: PlaygroundConfig, *, name: str) -> None:
        super().__init__(located(cfg, "karpathy"), name=name)


@catalog.datasets.register("playground_retrieval")
class PlaygroundRetrievalBuilder(_Generated, ImageTextRetrievalBuilder):
    """A gallery of pictures that each have captions of their own, as `coco_retrieval`."""

    Config = PlaygroundConfig

    def __init__(self, cfg: PlaygroundConfig, *, name: str) -> None:
        super().__init__(located(cfg, "karpathy"), name=name)


@catalog.datasets.register("playground_attributes")
class PlaygroundAttributesBuilder(_Generated):
    """Pictures with the boxes and attributes of their objects."""

    Config = PlaygroundConfig

    def __init__(self, cfg: PlaygroundConfig, *, name: str) -> None:
        super().__init__(located(cfg, "scenes"), name=name)
