"""The playground: a small drawn world in the layouts of the real datasets, made on first use."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.base import DatasetBuilder, DatasetConfig
from lavislite.datasets.caption import CaptionDataset, ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.image_text import ImageTextRetrievalBuilder
from lavislite.datasets.packed import PackedStrings
from lavislite.datasets.playground.attributes import AttributesDataset, read_graphs
from lavislite.datasets.playground.generate import WorldSpec, ensure_world
from lavislite.datasets.playground.scenes import SPLITS
from lavislite.datasets.playground.truth import score_captions
from lavislite.datasets.vqa import ImageVQABuilder, ImageVQAConfig, VQADataset


@dataclass
class PlaygroundConfig(DatasetConfig):
    """Which world. The datasets of a run should agree on it, or they show different ones.

    `annotations` and `images` are filled in; ``annotations: {test: null}`` takes a split away.
    """

    seed: int = WorldSpec.seed
    num_train: int = WorldSpec.num_train
    num_val: int = WorldSpec.num_val
    num_test: int = WorldSpec.num_test
    num_nocaps: int = WorldSpec.num_nocaps
    num_flickr30k: int = WorldSpec.num_flickr30k
    image_size: int = WorldSpec.image_size

    @property
    def world(self) -> WorldSpec:
        return WorldSpec(**{f.name: getattr(self, f.name) for f in fields(WorldSpec)})


@dataclass
class PlaygroundCaptionConfig(PlaygroundConfig, ImageCaptionConfig):
    """Options of `playground_caption`.

    `held_out`: "keep" all captions, or "drop" those of pictures that show one of the pairs of
    colour and shape that are new in `playground_nocaps`.
    """

    held_out: str = "keep"


@dataclass
class PlaygroundVQAConfig(PlaygroundConfig, ImageVQAConfig):
    """Options of `playground_vqa`."""

    image_name: Any = "{subset}/playground_{subset}_{image_id:012d}.jpg"


class InWorld:
    """A builder that reads the files of the world; `kinds` are those that hold a split."""

    kinds: ClassVar[tuple[str, ...]] = ("karpathy",)

    def __init__(self, cfg: Any, *, name: str) -> None:
        self.world: WorldSpec = cfg.world
        files = {split: [str(path) for path in found] for split, found in self.held(cfg).items()}
        pictures = cfg.images or self.picture_folder()
        super().__init__(  # type: ignore[call-arg]
            replace(cfg, annotations={**files, **cfg.annotations}, images=pictures), name=name
        )

    def held(self, cfg: Any) -> dict[str, list[Path]]:  # noqa: ARG002
        """The files of each split."""
        return {s: [self.file(f"{kind}_{s}.json") for kind in self.kinds] for s in SPLITS}

    def picture_folder(self) -> Any:
        """The folder that file names are relative to, or one for each split."""
        return str(self.world.folder / "images")

    def file(self, name: str) -> Path:
        """An annotation file of the world."""
        return self.world.folder / "annotations" / name

    def graphs(self, split: str) -> list[dict[str, Any]]:
        """The scene graphs of `split`."""
        return read_graphs(self.file(f"scenes_{split}.json"))

    def prepare(self) -> None:
        ensure_world(self.world)


@datasets.register("playground_caption")
class PlaygroundCaptionBuilder(InWorld, ImageCaptionBuilder):
    """Pictures with one caption at a time, as `coco_caption`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundCaptionConfig

    def held(self, cfg: PlaygroundCaptionConfig) -> dict[str, list[Path]]:
        if cfg.held_out not in _CAPTIONS:
            near = did_you_mean(cfg.held_out, _CAPTIONS)
            raise ConfigError(
                f"held_out: '{cfg.held_out}' is unknown.{near} Known: {', '.join(_CAPTIONS)}."
            )
        return {s: [self.file(f"{_CAPTIONS[cfg.held_out]}_{s}.json")] for s in SPLITS}

    def build(self, split: str, *, train: bool) -> CaptionDataset:
        """The captions of `split`; those that a model writes are compared with the scenes too."""
        dataset = super().build(split, train=train)
        if split in SPLITS and not train:
            check_against(dataset, {g["file_name"]: g for g in self.graphs(split)})
        return dataset


_CAPTIONS = {"keep": "karpathy", "drop": "familiar"}


def check_against(dataset: CaptionDataset, graphs: dict[str, Any]) -> None:
    """Let the captions that a model writes be compared with the scenes, by the pictures' ids."""
    dataset.score_captions = partial(score_captions, graphs=graphs)  # type: ignore[attr-defined]


@datasets.register("playground_retrieval")
class PlaygroundRetrievalBuilder(InWorld, ImageTextRetrievalBuilder):
    """A gallery of pictures that each have captions of their own, as `coco_retrieval`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundConfig


@datasets.register("playground_vqa")
class PlaygroundVQABuilder(InWorld, ImageVQABuilder):
    """Questions about the pictures, with ten annotators' answers, as `coco_vqa`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundVQAConfig
    kinds = ("questions", "answers")

    def build(self, split: str, *, train: bool) -> VQADataset:
        """The questions of `split`, which know a full description of each picture."""
        dataset = super().build(split, train=train)
        if split in SPLITS and not train:
            describe(dataset, self.world.folder / "images", self.graphs(split))
        return dataset


def describe(dataset: VQADataset, folder: Path, graphs: list[dict[str, Any]]) -> None:
    """Let `dataset` know a full description of each picture in `folder`."""
    said = {str(folder / graph["file_name"]): graph["description"] for graph in graphs}
    dataset.true_caption = partial(_told, dataset, said)  # type: ignore[attr-defined]


def _told(dataset: VQADataset, said: dict[str, str], index: int) -> str:
    """The description of the picture that question `index` is about."""
    return said[dataset.annotation(index)["image"]]


@datasets.register("playground_attributes")
class PlaygroundAttributesBuilder(InWorld, DatasetBuilder):
    """Pictures with the boxes and attributes of their objects."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundConfig
    kinds = ("scenes",)

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
