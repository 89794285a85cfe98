"""Pictures with captions in tar archives, as img2dataset packs them ("webdataset").

Each archive is read once for an index of what lies where; from then on any sample can be read by
itself. So shards behave like every other data set: shuffled, mixed with others by ratio, resumed to
the sample. Local ones are shuffled as a whole; those that lie elsewhere are read archive by
archive, a few at a time, through copies on the local disk.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from PIL import Image

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.base import DatasetConfig
from lavislite.datasets.caption import CaptionDataset, ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.images import TAIL, ImageFiles
from lavislite.datasets.packed import PackedStrings, file_stamp, stored
from lavislite.datasets.remote import Unreachable, read_range
from lavislite.datasets.shard_cache import GB, ShardCache
from lavislite.datasets.shard_index import (
    Arrays,
    Reading,
    index_remote,
    indexed,
    joined,
    look_up_all,
)
from lavislite.datasets.shard_names import archives
from lavislite.datasets.stores import RemoteFile
from lavislite.datasets.tables import ImageTable
from lavislite.datasets.window import Runs

logger = get_logger(__name__)

Shard = Path | RemoteFile


def _name(shard: Shard) -> str:
    return shard.url if isinstance(shard, RemoteFile) else str(shard)


@dataclass
class WebdatasetConfig(ImageCaptionConfig):
    """Options of `webdataset` and `laion2B_multi`.

    Attributes:
        annotations: split -> tar archives: a path, a URL (https, s3, gs, hf and what else fsspec
            and iopath know), a pattern (``shards/{00000..00099}.tar``, ``shards/**/*.tar``) or a
            list of these.
        captions_per_image: see `image_caption`; here "random" by default.
        max_captions: of a list of captions in a ``.json`` only the first so many are used; CapFilt
            puts the best first, and BLIP-2 drew from the first two.
        columns: ``caption: KEY`` reads the caption from another key of the ``.json``.
        shard_cache_gb: disk space for copies of archives from elsewhere; 0 keeps none and asks for
            every picture over the network. It is one place for all data sets and processes of a
            machine.
        shard_window: in training on archives from elsewhere, so many are mixed at a time.
    """

    captions_per_image: str = "random"
    max_captions: int = 2
    shard_cache_gb: float = 20.0
    shard_window: int = 8


class ShardTable(ImageTable):
    """An `ImageTable` that knows where its pictures lie: archive, offset and size of each."""

    def __init__(self, arrays: Arrays, shards: Sequence[Shard]) -> None:
        self._use(arrays)
        self.shards = list(shards)
        self.shard, self.offset, self.size = (arrays[k] for k in ("shard", "offset", "size"))
        if any(isinstance(shard, RemoteFile) for shard in shards):
            self.paths = self.ids = _Within(arrays, shards)


class _Within(PackedStrings):
    """Names of pictures with that of their archive, put together when asked for."""

    def __init__(self, arrays: Arrays, shards: Sequence[Shard]) -> None:
        self._blob, self._ends = arrays["paths.utf8"], arrays["paths.ends"]
        self._shard = arrays["shard"]
        self._archives = list(map(_name, shards))

    def __getitem__(self, index: int) -> str:
        name = super().__getitem__(index)
        return f"{self._archives[int(self._shard[index])]}/{name}"


class ShardFiles(ImageFiles):
    """The pictures of a `ShardTable`; one that is damaged counts as bad, as a file would.

    All pictures of an archive that cannot be had any more count as bad together.
    """

    def __init__(self, table: ShardTable, root: str, cache: ShardCache, **tolerance: Any) -> None:
        super().__init__(table.paths, root, **tolerance)
        self._table, self._cache = table, cache
        self._lost = torch.zeros(len(table.shards), dtype=torch.uint8).share_memory_()

    def check(self) -> None:
        """Nothing to look for: what is in the index is there."""

    def label(self, k: int) -> str:
        return self.names[k] if isinstance(self.names, _Within) else super().label(k)

    def identity(self, k: int) -> tuple[str, str]:
        table = self._table
        shard, size = table.shards[int(table.shard[k])], int(table.size[k])
        place = f"{int(table.offset[k])}+{size}"
        if isinstance(shard, RemoteFile):
            return f"{shard.url} {place}", f"{shard.size} {shard.version}"
        stat = shard.stat()  # it was there when it was indexed
        return f"{shard.absolute()} {place}", f"{stat.st_size} {stat.st_mtime_ns}"

    def bring(self, k: int) -> None:
        number = int(self._table.shard[k])
        shard = self._table.shards[number]
        if isinstance(shard, RemoteFile) and self._cache.limit and not self._lost[number]:
            threading.Thread(target=self._bring, args=(shard,), daemon=True).start()

    def _bring(self, shard: RemoteFile) -> None:
        try:
            self._cache.bring(shard)
        except (Unreachable, DataError) as error:  # who needs it will meet the same, and say so
            logger.info("%s: not fetched in advance: %s", self.owner, error)

    def load(self, k: int, process: Callable[[Image.Image], Any]) -> Any | None:
        try:
            return super().load(k, process)
        except Unreachable as error:
            self._lose(k, str(error))
            return None

    def _problem(self, k: int, decode: bool = False) -> str | None:
        try:
            return super()._problem(k, decode)
        except Unreachable as error:
            self._lost[int(self._table.shard[k])] = 1
            return str(error)

    def _lose(self, k: int, reason: str) -> None:
        """The archive of picture `k` cannot be read."""
        shard = int(self._table.shard[k])
        first, last = np.searchsorted(self._table.shard, [shard, shard + 1]).tolist()
        if not self._lost[shard]:
            self._lost[shard] = 1
            logger.warning("%s: skipping %d pictures: %s", self.owner, last - first, reason)
        self._bad[first:last] = 1
        self._check_tolerance(k, reason)

    def _file(self, k: int) -> BinaryIO:
        return io.BytesIO(self._read(k, int(self._table.size[k])))

    def _tail(self, k: int) -> bytes:
        return self._read(k, min(TAIL, int(self._table.size[k])))

    def _read(self, k: int, last: int) -> bytes:
        """The last so many bytes of a picture."""
        table = self._table
        number = int(table.shard[k])
        shard, start = table.shards[number], int(table.offset[k]) + int(table.size[k]) - last
        if isinstance(shard, RemoteFile):
            if self._lost[number]:
                raise Unreachable(f"{shard.url} could not be read before")
            return self._cache.read(shard, start, last)
        with open(shard, "rb", buffering=0) as file:  # noqa: PTH123
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
            found = self.shards(split, anew=True)
            remote = [shard for shard in found if isinstance(shard, RemoteFile) and shard.size]
            if remote and not self.cfg.shard_cache_gb:  # does it serve ranges at all?
                read_range(remote[0], 0, 1)

    def build(self, split: str, *, train: bool) -> CaptionDataset:
        data = super().build(split, train=train)
        table = data.table
        assert isinstance(table, ShardTable)
        remote = [shard for shard in table.shards if isinstance(shard, RemoteFile)]
        if train and remote:
            self._check_window(remote)
            first = np.searchsorted(table.shard, np.arange(len(table.shards) + 1))
            if self.cfg.captions_per_image == "all":  # samples are captions
                first = table.first_text[first]
            data.runs = Runs(np.unique(first), self.cfg.shard_window)
        return data

    def shards(self, split: str, *, anew: bool = False) -> list[Shard]:
        """The archives of `split`, in the order in which they are named.

        Args:
            anew: ask again what those from elsewhere are like, even if it is known.

        Raises:
            ConfigError: no such split, or something else than paths, URLs and patterns.
            DataError: archives that are not there.
        """
        self._sources(split)  # refuses a split that does not exist
        self._check_options()
        owner = f"datasets.{self.name}.annotations.{split}"
        named = archives(self.cfg.annotations[split], owner)
        urls = [name for name in named if isinstance(name, str)]
        found = iter(look_up_all(urls, owner, anew=anew)) if urls else iter(())
        return [next(found) if isinstance(name, str) else name for name in named]

    def pictures(self, split: str) -> tuple[ImageTable, ImageFiles]:
        shards = self.shards(split)
        cache = ShardCache(round(self.cfg.shard_cache_gb * GB))
        root, arrays = self._index(shards, cache, split)
        table = ShardTable(arrays, shards)
        if not len(table):
            raise DataError(
                f"{_name(shards[0])}: no picture with a caption in it (nor in the other "
                f"{len(shards) - 1} archives). Expected <key>.jpg beside <key>.txt or <key>.json "
                f"with `{self._reading.key}`."
            )
        return table, ShardFiles(table, root, cache, **self._tolerance(split))

    @property
    def _reading(self) -> Reading:
        return Reading(self.cfg.columns.get("caption", "caption"), self.cfg.max_captions)

    def _index(
        self, shards: Sequence[Shard], cache: ShardCache, split: str
    ) -> tuple[str, dict[str, np.ndarray]]:
        """The folder that names count from, "" if they are whole; and the arrays of the table."""
        reading = self._reading
        remote = [shard for shard in shards if isinstance(shard, RemoteFile)]
        local = [shard for shard in shards if isinstance(shard, Path)]
        root = "" if remote else os.path.commonpath([path.parent.resolve() for path in local])

        def parts() -> Iterator[Arrays]:
            fetched = index_remote(remote, cache, reading, f"{self.name}/{split}")
            for shard in shards:
                if isinstance(shard, RemoteFile):
                    yield next(fetched)
                else:
                    prefix = "" if remote else os.path.relpath(shard.resolve(), root) + "/"
                    yield indexed(shard, reading, prefix=prefix)

        stamps = [repr(s) if isinstance(s, RemoteFile) else file_stamp(s) for s in shards]
        key = ["shards", reading.key, str(reading.most), *stamps]
        where = f"below {root}" if root else f"of {self.name}/{split}"
        return root, stored(key, lambda: joined(parts(), where), small=0)

    def _check_options(self) -> None:
        where = f"datasets.{self.name}"
        if self.cfg.images is not None:
            raise ConfigError(f"{where}.images: leave it out: the archives hold the pictures.")
        least = {"max_captions": 1, "shard_window": 1, "shard_cache_gb": 0}
        for key, low in least.items():
            if getattr(self.cfg, key) < low:
                raise ConfigError(
                    f"{where}.{key}: expected {low} or more, saw {getattr(self.cfg, key)}"
                )
        for field in self.cfg.columns:
            if field != "caption":
                near = did_you_mean(field, ["caption"])
                raise ConfigError(f"{where}.columns.{field}: only `caption` has a name here.{near}")

    def _check_window(self, remote: Sequence[RemoteFile]) -> None:
        """There is room for all archives in use, the next one, and the one that has been used."""
        largest = sorted(file.size for file in remote)[-self.cfg.shard_window - 2 :]
        if 0 < self.cfg.shard_cache_gb < sum(largest) / GB:
            raise ConfigError(
                f"datasets.{self.name}.shard_cache_gb: {self.cfg.shard_cache_gb:g} is too little: "
                f"{len(largest)} archives are kept at a time, and they have up to "
                f"{sum(largest) / GB:.3g} GB. Raise it, or lower shard_window "
                f"({self.cfg.shard_window}); or 0 keeps none."
            )


@datasets.register("webdataset")
class OwnShardsBuilder(WebdatasetBuilder):
    """Shards of your own."""


@datasets.register("laion2B_multi")
class Laion2BMultiBuilder(WebdatasetBuilder):
    """The part of LAION-2B whose captions are in other languages than English."""
