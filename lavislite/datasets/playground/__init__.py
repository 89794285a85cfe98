"""The playground: a small drawn world in the layouts of the real datasets, made on first use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from lavislite.common.catalog import datasets
from lavislite.datasets.base import DatasetBuilder, DatasetConfig
from lavislite.datasets.caption import ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.image_text import ImageTextRetrievalBuilder
from lavislite.datasets.packed import PackedStrings
from lavislite.datasets.playground.attributes import AttributesDataset, read_graphs
from lavislite.datasets.playground.generate import WorldSpec, ensure_world
from lavislite.datasets.playground.scenes import SPLITS


@dataclass
class PlaygroundConfig(DatasetConfig):
    """Which world. The datasets of a run should agree on it, or they show different ones.

    `annotations` and `images` are filled in; ``annotations: {test: null}`` takes a split away.
    """

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


@dataclass
class PlaygroundCaptionConfig(PlaygroundConfig, ImageCaptionConfig):
    """Options of `playground_caption`."""


Cfg = TypeVar("Cfg", bound=PlaygroundConfig)


def located(cfg: Cfg, kind: str) -> Cfg:
    """`cfg` with the paths of the world's files of that kind: karpathy or scenes."""
    folder = cfg.world.folder
    files = {split: str(folder / "annotations" / f"{kind}_{split}.json") for split in SPLITS}
    return replace(
        cfg, annotations={**files, **cfg.annotations}, images=cfg.images or str(folder / "images")
    )


@datasets.register("playground_caption")
class PlaygroundCaptionBuilder(ImageCaptionBuilder):
    """Pictures with one caption at a time, as `coco_caption`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundCaptionConfig

    def __init__(self, cfg: PlaygroundCaptionConfig, *, name: str) -> None:
        super().__init__(located(cfg, "karpathy"), name=name)
        self.world = cfg.world

    def prepare(self) -> None:
        ensure_world(self.world)


@datasets.register("playground_retrieval")
class PlaygroundRetrievalBuilder(ImageTextRetrievalBuilder):
    """A gallery of pictures that each have captions of their own, as `coco_retrieval`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundConfig

    def __init__(self, cfg: PlaygroundConfig, *, name: str) -> None:
        super().__init__(located(cfg, "karpathy"), name=name)
        self.world = cfg.world

    def prepare(self) -> None:
        ensure_world(self.world)


@datasets.register("playground_attributes")
class PlaygroundAttributesBuilder(DatasetBuilder):
    """Pictures with the boxes and attributes of their objects."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundConfig

    def __init__(self, cfg: PlaygroundConfig, *, name: str) -> None:
        super().__init__(located(cfg, "scenes"), name=name)
        self.world = cfg.world

    def prepare(self) -> None:
        ensure_world(self.world)

    def build(self, split: str, *, train: bool) -> AttributesDataset:
        """The pictures of `split`; training needs no augmentation that would move objects."""
        processor = self.vis_processor(train)
        (source,) = self._sources(split)
        graphs = read_graphs(source.locate())
        folder = self._folder(split)
        assert folder is not None
        files = self.files(split, PackedStrings(graph["file_name"] for graph in graphs), folder)
        return AttributesDataset(
            self.name, split, graphs=graphs, files=files, vis_processor=processor
        )
