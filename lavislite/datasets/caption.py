"""Pictures with captions: for training, and for validation by loss or by the captions written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.annotations import Record
from lavislite.datasets.base import (
    Dataset,
    DatasetBuilder,
    DatasetConfig,
    Processor,
    fetched_by,
)
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.samples import Sample, id_number
from lavislite.datasets.tables import ImageTable

CHOICES = ("all", "random")
EVALUATIONS = ("loss", "caption")


@dataclass
class ImageCaptionConfig(DatasetConfig):
    """Options of `image_caption`.

    Attributes:
        captions_per_image: in training, "all" makes one sample of every caption, so that an epoch
            sees a picture as often as it has captions; "random" makes one sample of every picture,
            with one of its captions drawn each time. Evaluation always uses all.
        evaluation: what pre-training does with the splits it evaluates: "loss" on every caption, or
            "caption", which writes a caption for every picture and compares it with the true ones.
            The task `captioning` always does the latter.
    """

    captions_per_image: str = "all"
    evaluation: str = "loss"


class CaptionDataset(Dataset):
    """Samples ``{"image": [3, S, S], "text_input": str, "image_id": int, "index": int}``.

    `image_id` is equal for samples of the same picture, in this dataset only.

    Args:
        table: pictures and captions.
        draw: one sample per picture with a random caption, instead of one per caption.
        keep: the pictures of the table that are used, by number; None means all.
        evaluation: see `ImageCaptionConfig`.

    Attributes:
        domains: what kind of picture each is, by its id in the annotations; mostly empty. Captions
            are scored in each domain as well as in all.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        table: ImageTable,
        files: ImageFiles,
        vis_processor: Processor,
        text_processor: Processor,
        draw: bool = False,
        keep: Iterable[int] | None = None,
        evaluation: str = "loss",
    ) -> None:
        super().__init__(name, split, files=files, vis_processor=vis_processor)
        self.table = table
        self.text_processor = text_processor
        self.evaluation = evaluation
        self.domains: Mapping[str, str] = {}
        self._kept = None if keep is None else np.asarray(list(keep), dtype=np.int64)
        self._draw = draw
        self._text: np.ndarray | None = None  # the captions of the pictures that are kept
        if self._kept is not None and not draw:
            texts = [np.asarray(table.text_numbers(int(k)), np.int64) for k in self._kept]
            self._text = np.concatenate([np.empty(0, np.int64), *texts])

    def __len__(self) -> int:
        if not self._draw:
            return len(self.table.texts if self._text is None else self._text)
        return len(self.table if self._kept is None else self._kept)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        if image is None:
            return None
        return {
            "image": image,
            "text_input": self.text_processor(self.table.texts[self._text_number(index)]),
            "image_id": id_number(self.name, self.table.ids[self.file_number(index)]),
            "index": int(index),
        }

    def file_number(self, index: int) -> int:
        if not self._draw:
            return self.table.picture_of_text(self._text_number(index))
        return index if self._kept is None else int(self._kept[index])

    def captions(self) -> Iterable[str]:
        return (self.text_processor(text) for text in self.table.texts)

    def pictures(self) -> Pictures:
        """The same split with one sample per picture, for writing captions."""
        return Pictures(self, range(len(self.table)) if self._kept is None else self._kept)

    def _text_number(self, index: int) -> int:
        if not self._draw:
            return index if self._text is None else int(self._text[index])
        choices = self.table.text_numbers(self.file_number(index))
        return choices[int(torch.randint(len(choices), (1,)))]


class Captioned(Protocol):
    """What `Pictures` are taken from."""

    name: str
    split: str
    files: ImageFiles
    vis_processor: Processor
    table: ImageTable


class Pictures(Dataset):
    """The pictures of a dataset with captions, samples ``{"image": [3, S, S], "index": int}``.

    Attributes:
        image_ids: as the annotations have them; the file name where they have none.
        image_paths: the files.
    """

    evaluation = "caption"

    def __init__(self, source: Captioned, numbers: Iterable[int]) -> None:
        super().__init__(
            source.name, source.split, files=source.files, vis_processor=source.vis_processor
        )
        self._table = source.table
        self._numbers = [int(k) for k in numbers]
        self.image_ids = [self._table.ids[k] for k in self._numbers]
        self.image_paths: list[Path] = [source.files.path(k) for k in self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        return None if image is None else {"image": image, "index": int(index)}

    def file_number(self, index: int) -> int:
        return self._numbers[index]

    def references(self, index: int) -> list[str]:
        """The captions of picture `index` as the annotations have them; none in a test split."""
        return [self._table.texts[t] for t in self._table.text_numbers(self._numbers[index])]


class ImageCaptionBuilder(DatasetBuilder):
    """Your own pictures with captions, from any of the formats in `datasets.annotations`."""

    Config: ClassVar[type[DatasetConfig]] = ImageCaptionConfig
    cfg: ImageCaptionConfig

    def build(self, split: str, *, train: bool) -> CaptionDataset:
        for key, known in (("captions_per_image", CHOICES), ("evaluation", EVALUATIONS)):
            choice = getattr(self.cfg, key)
            if choice not in known:
                raise ConfigError(
                    f"datasets.{self.name}.{key}: expected {' or '.join(known)}, saw "
                    f"'{choice}'.{did_you_mean(choice, known)}"
                )
        draw = self.cfg.captions_per_image == "random"
        return build_captions(self, split, train=train, draw=draw, evaluation=self.cfg.evaluation)


def build_captions(
    builder: DatasetBuilder,
    split: str,
    *,
    train: bool,
    draw: bool = False,
    evaluation: str = "loss",
) -> CaptionDataset:
    """The caption dataset of a builder's split.

    Pictures that are missing are left out of evaluation from the start (and reported), so that
    every process scores the same samples; in training they are skipped where they turn up.
    """
    vis, text = builder.vis_processor(train), builder.text_processor(train)
    table, files = builder.pictures(split)
    return CaptionDataset(
        builder.name,
        split,
        table=table,
        files=files,
        vis_processor=vis,
        text_processor=text,
        draw=draw and train,
        keep=None if train else files.readable(),
        evaluation=evaluation,
    )


# Registered here rather than with @ on the class: Coco* only differ in their packaged defaults.
datasets.register("image_caption")(ImageCaptionBuilder)


@datasets.register("coco_caption")
class CocoCaptionBuilder(ImageCaptionBuilder):
    """COCO captions in Karpathy's splits; the annotations are downloaded."""

    advice = fetched_by("coco_caption")


@datasets.register("vg_caption")
class VGCaptionBuilder(ImageCaptionBuilder):
    """Visual Genome's region phrases as captions: LAVIS's selection, or the official file."""

    advice = f"{fetched_by('vg_caption')} It holds VG_100K and VG_100K_2, or all in one `image`."
    looks_at_folder = True

    def _records(self, files: list[Path], split: str, beside: bool) -> Iterator[Record]:
        place = vg_names(self._folder(split))
        for record in super()._records(files, split, beside):
            yield Record(place(record.image), record.captions, record.image_id)


def vg_names(folder: Path | None) -> Callable[[str], str]:
    """From LAVIS's names (image/1.jpg) to those of the archives, where these were left as they are.

    They unpack to VG_100K/ and VG_100K_2/, which no annotation file mentions.
    """
    if folder is None or (folder / "image").is_dir():
        return lambda name: name
    parts = [part for part in ("VG_100K", "VG_100K_2") if (folder / part).is_dir()]
    where = {name: part for part in parts for name in os.listdir(folder / part)}  # noqa: PTH208

    def place(name: str) -> str:
        base = name.removeprefix("image/")
        return f"{where[base]}/{base}" if base in where else name

    return place
