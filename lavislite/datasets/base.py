"""What all datasets and their builders share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch

from lavislite.common.errors import ConfigError
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.annotations import Record, read_records
from lavislite.datasets.download import locate, sources
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.packed import PackedStrings, file_stamp
from lavislite.datasets.samples import Sample, collate
from lavislite.datasets.tables import ImageTable
from lavislite.datasets.window import Runs
from lavislite.processors import build_processor

logger = get_logger(__name__)

Processor = Callable[[Any], Any]
PHASES = ("train", "eval")
_ENTRIES = 10_000
# Options that leave the records of an annotation file as they are.
_NOT_ABOUT_RECORDS = frozenset(
    {"builder", "type", "annotations", "vis_processor", "text_processor", "max_bad_fraction"}
    | {"ratio", "captions_per_image", "evaluation"}
)


@dataclass
class DatasetConfig:
    """Options of every dataset.

    Attributes:
        builder: registry name of the builder, when the key in `datasets:` is a name of your own.
        type: packaged defaults to start from: ``configs/datasets/<builder>/<type>.yaml``.
        annotations: split -> file, URL, ``{path, url, md5}``, or a list of these; any split names.
            ``null`` takes a split away.
        images: folder of the pictures, or split -> folder; None means the annotation file's folder.
        vis_processor, text_processor: ``{train: {name: ..., ...}, eval: {name: ..., ...}}``.
        columns: our field (image, caption, image_id) -> its name in your files.
        max_bad_fraction: share of pictures that may be missing or unreadable.
        ratio: share of this dataset in the training batches, relative to the others; None: by size.
    """

    builder: str | None = None
    type: str = "default"
    annotations: dict[str, Any] = field(default_factory=dict)
    images: Any = None
    vis_processor: dict[str, Any] = field(
        default_factory=lambda: {
            "train": {"name": "blip2_image_train"},
            "eval": {"name": "blip_image_eval"},
        }
    )
    text_processor: dict[str, Any] = field(
        default_factory=lambda: {
            "train": {"name": "blip_caption"},
            "eval": {"name": "blip_caption"},
        }
    )
    columns: dict[str, str] = field(default_factory=dict)
    max_bad_fraction: float = 0.01
    ratio: float | None = None


class Dataset(torch.utils.data.Dataset):
    """Map-style: sample i is a dictionary, or None when its picture cannot be read.

    Subclasses define ``__len__`` and ``__getitem__``; `load_image` does the counting.

    Attributes:
        name, split: as in the config.
        evaluation: how a task scores it: "loss", "retrieval", "multilabel".
        files: the pictures.
        runs: which samples lie in one archive, where they are to be read archive by archive.
    """

    evaluation: str = "loss"
    runs: Runs | None = None

    def __init__(
        self, name: str, split: str, *, files: ImageFiles, vis_processor: Processor
    ) -> None:
        self.name = name
        self.split = split
        self.files = files
        self.vis_processor = vis_processor

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample | None:
        raise NotImplementedError

    def file_number(self, index: int) -> int:
        """Which of `files` sample `index` shows."""
        return index

    def load_image(self, index: int) -> Any | None:
        """The processed picture of sample `index`; None (logged, counted) if it cannot be read.

        Raises:
            DataError: with this one, more than `max_bad_fraction` of the pictures are bad.
        """
        return self.files.load(self.file_number(index), self.vis_processor)

    def bring(self, index: int) -> None:
        """Sample `index` will be asked for soon: begin to fetch what is not on this machine."""
        self.files.bring(self.file_number(index))

    def record_id(self, index: int) -> str:
        """What to call sample `index` in messages."""
        label = self.files.label(self.file_number(index))
        return f"{self.name}/{self.split} record {index} ({label})"

    @property
    def bad_records(self) -> int:
        """How many pictures were missing or unreadable so far, in all worker processes."""
        return self.files.n_bad

    def captions(self) -> Iterable[str]:
        """Every text, as a model sees it; for making a tokenizer."""
        return ()

    def collate(self, samples: Sequence[Sample | None]) -> Sample:
        """A batch: see `collate`."""
        return collate(samples, f"{self.name}/{self.split}")


def _folders(folder: Path) -> list[Path]:
    """A folder and those in it: their times change when a file comes or goes."""
    if not folder.is_dir():
        return [folder]
    with os.scandir(folder) as entries:  # of a million pictures side by side not all are looked at
        inside = [entry.path for entry in islice(entries, _ENTRIES) if entry.is_dir()]
    return [folder, *map(Path, sorted(inside))]


def _warn_about_ids(table: ImageTable, owner: str) -> None:
    if table.clash is not None:
        one, two = table.clash
        logger.warning(
            "%s: image_id %s stands for different pictures (%s, %s, ...): their captions count "
            "as matching each of them. Do several files number their pictures alike?",
            *(owner, table.ids[one], table.paths[one], table.paths[two]),
        )


def fetched_by(name: str) -> str:
    """The advice of a data set whose pictures `lavislite download` fetches."""
    return (
        f"`lavislite download {name}` fetches them; where you have them already, set `images:` to "
        "their folder."
    )


class DatasetBuilder:
    """Makes the splits of a dataset from its options.

    Subclasses define `build`; `prepare` where files must be made or downloaded first.
    """

    Config: ClassVar[type[DatasetConfig]] = DatasetConfig
    advice: ClassVar[str] = ""  # where to get the pictures, appended to messages about them
    looks_at_folder: ClassVar[bool] = False  # `_records` depends on which pictures are there

    def __init__(self, cfg: DatasetConfig, *, name: str) -> None:
        self.cfg = cfg
        self.name = name

    def splits(self) -> list[str]:
        return [split for split, entry in self.cfg.annotations.items() if entry is not None]

    def prepare(self) -> None:
        """Download what is missing. Called once per machine, before `build`."""
        for split in self.splits():
            for source in self._sources(split):
                source.locate()

    def build(self, split: str, *, train: bool) -> Dataset:
        """The dataset of `split`, its annotations read and checked, its pictures not yet loaded.

        Args:
            train: with the processors for training (augmentation) instead of those for evaluation.

        Raises:
            ConfigError: no such split, or a wrong option.
            DataError: a missing or malformed annotation file, or no pictures where they should be.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------ parts for `build`

    def table(self, split: str) -> tuple[ImageTable, Path]:
        """The annotations of `split` and the folder of its pictures."""
        files = [source.locate() for source in self._sources(split)]
        folder = self._folder(split)
        table = ImageTable.stored(
            self._key(files, split), lambda: self._records(files, split, beside=folder is None)
        )
        _warn_about_ids(table, f"{self.name}/{split}")
        return table, folder if folder is not None else Path()

    def pictures(self, split: str) -> tuple[ImageTable, ImageFiles]:
        """The annotations of `split` and its pictures, looked for."""
        table, folder = self.table(split)
        return table, self.files(split, table.paths, folder)

    def files(self, split: str, names: PackedStrings, folder: Path) -> ImageFiles:
        """The pictures, looked for."""
        files = ImageFiles(names, folder, **self._tolerance(split))
        files.check()
        return files

    def _tolerance(self, split: str) -> dict[str, Any]:
        """What `ImageFiles` must know about bad pictures."""
        where = f"datasets.{self.name}.max_bad_fraction"
        if not 0 <= self.cfg.max_bad_fraction <= 1:
            raise ConfigError(f"{where}: expected 0 to 1, saw {self.cfg.max_bad_fraction}")
        return {
            "owner": f"{self.name}/{split}",
            "max_bad_fraction": self.cfg.max_bad_fraction,
            "advice": f" {self.advice}" if self.advice else "",
        }

    def vis_processor(self, train: bool) -> Processor:
        return self._processor("vis_processor", self.cfg.vis_processor, train)

    def text_processor(self, train: bool) -> Processor:
        return self._processor("text_processor", self.cfg.text_processor, train)

    def _processor(self, kind: str, cfg: dict[str, Any], train: bool) -> Processor:
        where = f"datasets.{self.name}.{kind}"
        for key in cfg:
            if key not in PHASES:
                near = did_you_mean(key, PHASES)
                raise ConfigError(f"{where}.{key}: expected `train` or `eval`.{near}")
        phase = "train" if train else "eval"
        return build_processor(cfg.get(phase) or {}, f"{where}.{phase}")

    def _sources(self, split: str) -> list[Any]:
        if split not in self.splits():
            known = self.splits()
            raise ConfigError(
                f"datasets.{self.name} has no split '{split}'.{did_you_mean(split, known)} Known: "
                f"{', '.join(known) or '(none)'}; set datasets.{self.name}.annotations.{split}"
            )
        where = f"datasets.{self.name}.annotations.{split}"
        return sources(self.cfg.annotations[split], where)

    def _records(self, files: list[Path], split: str, beside: bool) -> Iterator[Record]:
        for file in files:
            for record in read_records(file, columns=self.cfg.columns, split=split):
                image = str(file.parent / record.image) if beside else record.image
                yield Record(image, record.captions, record.image_id)

    def _key(self, files: list[Path], split: str) -> list[str]:
        """All that `_records` depends on: its code, the files, the options."""
        reader = self._records
        folder = self._folder(split)
        seen = _folders(folder) if self.looks_at_folder and folder is not None else []
        options = {k: v for k, v in vars(self.cfg).items() if k not in _NOT_ABOUT_RECORDS}
        return [
            *(split, reader.__qualname__, file_stamp(Path(reader.__code__.co_filename))),
            *map(file_stamp, [*files, *seen]),
            json.dumps(options, sort_keys=True, default=repr),
        ]

    def _folder(self, split: str) -> Path | None:
        images = self.cfg.images
        if isinstance(images, dict):
            if split not in images:
                raise ConfigError(
                    f"datasets.{self.name}.images: no folder for the split '{split}'. "
                    f"Known: {', '.join(map(str, images))}"
                )
            images = images[split]
        if images is None:
            return None
        if not isinstance(images, str):
            raise ConfigError(
                f"datasets.{self.name}.images: expected a folder, or split: folder, saw {images!r}"
            )
        return locate(images)
