"""The world in the files of GQA, OK-VQA, NoCaps and Flickr30k, read as those are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError
from lavislite.common.io import read_json
from lavislite.common.registry import did_you_mean
from lavislite.datasets.base import DatasetConfig
from lavislite.datasets.caption import CaptionDataset
from lavislite.datasets.flickr30k import Flickr30kBuilder
from lavislite.datasets.nocaps import NoCapsBuilder, NoCapsConfig
from lavislite.datasets.playground import (
    InWorld,
    PlaygroundConfig,
    PlaygroundVQAConfig,
    check_against,
    describe,
)
from lavislite.datasets.playground.scenes import SPLITS
from lavislite.datasets.vqa import GQABuilder, ImageVQAConfig, OKVQABuilder, VQADataset

QUESTIONS = ("balanced", "all")


@dataclass
class PlaygroundGQAConfig(PlaygroundConfig, ImageVQAConfig):
    """Options of `playground_gqa`.

    `questions`: "balanced", or "all", which measuring consistency needs (in evaluation; training
    has balanced ones only).
    """

    image_name: Any = "{image_id}.jpg"
    questions: str = "balanced"


@datasets.register("playground_gqa")
class PlaygroundGQABuilder(InWorld, GQABuilder):
    """Questions with programs, types and entailments, as `gqa`; `test` is what testdev is there."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundGQAConfig

    def held(self, cfg: PlaygroundGQAConfig) -> dict[str, list[Path]]:
        if cfg.questions not in QUESTIONS:
            near = did_you_mean(cfg.questions, QUESTIONS)
            raise ConfigError(
                f"questions: '{cfg.questions}' is unknown.{near} Known: {', '.join(QUESTIONS)}."
            )
        which = {split: "balanced" if split == "train" else cfg.questions for split in SPLITS}
        return {s: [self.file(f"gqa_{s}_{which[s]}_questions.json")] for s in SPLITS}

    def picture_folder(self) -> Any:
        return {split: str(self.world.folder / "images" / split) for split in SPLITS}

    def build(self, split: str, *, train: bool) -> VQADataset:
        """The questions of `split`, which know a full description of each picture."""
        dataset = super().build(split, train=train)
        if split in SPLITS and not train:
            describe(dataset, self.world.folder / "images", self.graphs(split))
        return dataset


@datasets.register("playground_ok_vqa")
class PlaygroundOKVQABuilder(InWorld, OKVQABuilder):
    """Questions that need a fact that the picture does not show, as `ok_vqa`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundVQAConfig
    kinds = ("okvqa_questions", "okvqa_answers")

    def build(self, split: str, *, train: bool) -> VQADataset:
        """The questions of `split`, which know a full description of each picture."""
        dataset = super().build(split, train=train)
        if split in SPLITS and not train:
            describe(dataset, self.world.folder / "images", self.graphs(split))
        return dataset


@dataclass
class PlaygroundNoCapsConfig(PlaygroundConfig, NoCapsConfig):
    """Options of `playground_nocaps`."""


@datasets.register("playground_nocaps")
class PlaygroundNoCapsBuilder(InWorld, NoCapsBuilder):
    """Pictures without, with some and with only new pairs of colour and shape, as `nocaps`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundNoCapsConfig

    def held(self, cfg: Any) -> dict[str, list[Path]]:  # noqa: ARG002
        return {"test": [self.file("nocaps_test.json")]}

    def picture_folder(self) -> Any:
        return str(self.world.folder / "images" / "nocaps")

    def build(self, split: str, *, train: bool) -> CaptionDataset:
        dataset = super().build(split, train=train)
        if split == "test" and not train:
            check_against(dataset, read_json(self.file("scenes_nocaps.json")))
        return dataset


@datasets.register("playground_flickr30k")
class PlaygroundFlickr30kBuilder(InWorld, Flickr30kBuilder):
    """A larger gallery of pictures that look different, as `flickr30k`."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundConfig

    def held(self, cfg: Any) -> dict[str, list[Path]]:  # noqa: ARG002
        return {split: [self.file("dataset_flickr30k.json")] for split in SPLITS}

    def picture_folder(self) -> Any:
        return str(self.world.folder / "images" / "flickr30k")
