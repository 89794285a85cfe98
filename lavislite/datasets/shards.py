"""Pictures with captions in tar archives, as img2dataset packs them ("webdataset").

Each archive is read once for an index of what lies where; from then on any sample can be read by
itself. So shards behave like every other data set: shuffled as a whole, mixed with others by
ratio, resumed to the sample.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import cache_dir
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.base import DatasetConfig
from lavislite.datasets.caption import ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.images import TAIL, ImageFiles
from lavislite.datasets.packed import StringPacker, file_stamp, stored
from lavislite.datasets.tables import ImageTable
from lavislite.datasets.tar import members

logger = get_logger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass
class WebdatasetConfig(ImageCaptionConfig):
    """Options of `webdataset` and `laion2B_multi`.

    Attributes:
        annotations: split -> tar archives: a path, a pattern (``shards/{00000..00099}.tar``,
            ``shards/**/*.tar``) or a list of these.
        captions_per_image: see `image_caption`; here "random" by default.
        max_captions: of a list of captions in a ``.json`` only the first so many are used; CapFilt
            puts the best first, and BLIP-2 drew from the first two.
        columns: ``caption: KEY`` reads the caption from another key of the ``.json``.
    """

    captions_per_image: str = "random"
    max_captions: int = 2


class ShardTable(ImageTable):
    """An `ImageTable` that knows where its pictures lie: archive, offset and size of each."""

    def __init__(self, arrays: Mapping[str, np.ndarray], shards: Sequence[Path]) -> None:
        self._use(arrays)
        self.shards = [str(shard) for shard in shards]
        self.shard, self.offset, self.size = (arrays[k] for k in ("shard", "offset", "size"))


class ShardFiles(ImageFiles):
    """The pictures of a `ShardTable`; one that is damaged counts as bad, as a file would."""

    def __init__(self, table: ShardTable, root: str, **tolerance: Any) -> None:
        super().__init__(table.paths, root, **tolerance)
        self._table = table

    def check(self) -> None:
        """Nothing to look for: what is in the index is there."""

    def _file(self, k: int) -> BinaryIO:
        return io.BytesIO(self._read(k, int(self._table.size[k])))

    def _tail(self, k: int) -> bytes:
        return self._read(k, min(TAIL, int(self._table.size[k])))

    def _read(self, k: int, last: int) -> bytes:
        """The last so many bytes of a picture."""
        table = self._table
        start = int(table.offset[k]) + int(table.size[k]) - last
        with open(table.shards[int(table.shard[k])], "rb", buffering=0) as file:  # noqa: PTH123
            file.seek(start)
            return file.read(last)


class WebdatasetBuilder(ImageCaptionBuilder):
    """Your own shards: ``<key>.jpg`` (png, webp) with ``<key>.txt`` or ``<key>.json`` in each.

    The ``.json`` holds an object with `caption` (a text or a list of them), or a list of captions;
    what it says goes before the ``.txt``. Samples without picture or caption are left out.
    """

    Config: ClassVar[type[DatasetConfig]] = WebdatasetConfig
    cfg: WebdatasetConfig

    def prepare(self) -> None:
        for split in self.splits():
            self.shards(split)

    def shards(self, split: str) -> list[Path]:
        """The archives of `split`, in the order of their names.

        Raises:
            ConfigError: no such split, or something else than paths and patterns.
            DataError: archives that are not there.
        """
        self._sources(split)  # refuses a split that does not exist
        entry, where = self.cfg.annotations[split], f"datasets.{self.name}.annotations.{split}"
        patterns = entry if isinstance(entry, list) else [entry]
        return [shard for pattern in patterns for shard in _matching(pattern, where)]

    def pictures(self, split: str) -> tuple[ImageTable, ImageFiles]:
        self._check_options()
        shards = self.shards(split)
        root = os.path.commonpath([shard.parent.resolve() for shard in shards])
        key, most = self.cfg.columns.get("caption", "caption"), self.cfg.max_captions
        arrays = stored(
            ["shards", key, str(most), *map(file_stamp, shards)],
            lambda: _index(shards, root, key, most),
            small=0,
        )
        table = ShardTable(arrays, shards)
        if not len(table):
            raise DataError(
                f"{shards[0]}: no picture with a caption in it (nor in the other {len(shards) - 1} "
                f"archives). Expected <key>.jpg beside <key>.txt or <key>.json with `{key}`."
            )
        return table, ShardFiles(table, root, **self._tolerance(split))

    def _check_options(self) -> None:
        where = f"datasets.{self.name}"
        if self.cfg.images is not None:
            raise ConfigError(f"{where}.images: leave it out: the archives hold the pictures.")
        if self.cfg.max_captions < 1:
            raise ConfigError(
                f"{where}.max_captions: expected 1 or more, saw {self.cfg.max_captions}"
            )
        for field in self.cfg.columns:
            if field != "caption":
                near = did_you_mean(field, ["caption"])
                raise ConfigError(f"{where}.columns.{field}: only `caption` has a name here.{near}")


@datasets.register("webdataset")
class OwnShardsBuilder(WebdatasetBuilder):
    """Shards of your own."""


@datasets.register("laion2B_multi")
class Laion2BMultiBuilder(WebdatasetBuilder):
    """The part of LAION-2B whose captions are in other languages than English."""


# ------------------------------------------------------------------------------------------- index


def _index(shards: Sequence[Path], root: str, key: str, most: int) -> dict[str, np.ndarray]:
    names, captions = StringPacker(), StringPacker()
    first, shard, offset, size = array("q", [0]), array("q"), array("q"), array("q")
    left_out = 0
    for number, path in enumerate(shards):
        folder = os.path.relpath(path.resolve(), root)
        for sample in _samples(path, key, most):
            if sample.picture is None or not sample.captions:
                left_out += 1
                continue
            name, start, length = sample.picture
            names.add(f"{folder}/{name}")
            for caption in sample.captions:
                captions.add(caption)
            for values, value in (
                *((first, len(captions)), (shard, number)),
                *((offset, start), (size, length)),
            ):
                values.append(value)
    logger.info(
        "%d archives below %s: %d pictures with captions, %d without a caption or a picture",
        *(len(shards), root, len(names), left_out),
    )
    return {
        **names.arrays("paths"),
        **captions.arrays("texts"),
        "first_text": np.asarray(first, np.int64),
        "shard": np.asarray(shard, np.int32),
        "offset": np.asarray(offset, np.int64),
        "size": np.asarray(size, np.int64),
    }


@dataclass
class _Sample:
    picture: tuple[str, int, int] | None = None
    text: list[str] | None = None  # of the .txt
    described: list[str] | None = None  # of the .json

    @property
    def captions(self) -> list[str]:
        return self.described or self.text or []


def _samples(path: Path, key: str, most: int) -> Iterable[_Sample]:
    """What belongs together has the same name up to the first dot."""
    found: dict[str, _Sample] = {}
    for (name, offset, size), content in members(path):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if not stem:  # .DS_Store and the like
            continue
        sample = found.setdefault(folder + slash + stem, _Sample())
        suffix = suffix.lower()
        if suffix in PICTURES:
            sample.picture = name, offset, size
        elif suffix == "txt":
            sample.text = _texts([bytes(content).decode("utf-8", "replace")], most)
        elif suffix == "json":
            sample.described = _texts(_described(bytes(content), key), most)
    return found.values()


def _described(content: bytes, key: str) -> Any:
    try:
        value = json.loads(content)
    except ValueError:  # counted with the samples that have no caption, unless there is a .txt
        return []
    return value.get(key) if isinstance(value, dict) else value


def _texts(value: Any, most: int) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()][:most]


# ---------------------------------------------------------------------------------------- patterns


def _matching(pattern: Any, where: str) -> list[Path]:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{where}: expected tar archives or a pattern of them, saw {pattern!r}")
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ConfigError(
            f"{where}: {pattern} is not on this machine. Shards are read in any order, which needs "
            "local files: download them first (for example with `aws s3 sync` or `wget`) and name "
            "their folder, such as /data/shards/*.tar"
        )
    wanted = list(expand_braces(pattern))
    for root in ("", str(cache_dir())):
        found = [_files(os.path.join(root, Path(part).expanduser())) for part in wanted]  # noqa: PTH118
        if any(found):
            break
    missing = [part for part, files in zip(wanted, found, strict=True) if not files]
    if missing:
        also = "" if Path(pattern).is_absolute() else f" (neither here nor in {cache_dir()})"
        raise DataError(
            f"{where}: {len(missing)} of {len(wanted)} archives of {pattern} do not exist{also}, "
            f"the first is {missing[0]}. A pattern with * takes those that are there."
        )
    return [file for files in found for file in files]


def _files(pattern: str) -> list[Path]:
    if glob.has_magic(pattern):
        return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    path = Path(pattern)
    if path.is_dir():
        raise DataError(f"{path} is a folder; tar archives are expected, such as {path}/*.tar")
    return [path] if path.is_file() else []


def expand_braces(pattern: str) -> Iterator[str]:
    """``a{0..2}{x,y}`` -> a0x, a0y, a1x, ...; numbers are as wide as the first one is written."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(match[1])
    if bounds is None:
        parts = match[1].split(",")
    else:
        low, high, width = int(bounds[1]), int(bounds[2]), len(bounds[1])
        parts = [f"{n:0{width}d}" for n in range(low, high + 1)]
    for part in parts:
        for rest in expand_braces(pattern[match.end() :]):
            yield pattern[: match.start()] + part + rest
