"""Captions from the web (SBU, Conceptual Captions): URLs, and the pictures still there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from lavislite.common.catalog import datasets
from lavislite.common.errors import DataError
from lavislite.common.logging import get_logger
from lavislite.common.transfer import picture_name
from lavislite.datasets.annotations import Record, read_records
from lavislite.datasets.base import DatasetConfig
from lavislite.datasets.caption import ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.json_stream import Entry, stream_json
from lavislite.datasets.packed import PackedStrings
from lavislite.datasets.records import checked, existing, short

logger = get_logger(__name__)

_SBU = ("image_urls", "captions")


@dataclass
class WebCaptionConfig(ImageCaptionConfig):
    """Options of `conceptual_caption_3m`, `conceptual_caption_12m` and `sbu_caption`.

    Attributes:
        skip_missing: leave out the rows whose picture is not in the folder, as most lists of URLs
            have lost some. Those that are there but cannot be read count as bad either way.
    """

    skip_missing: bool = True


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a list; `caption` is unchecked."""

    where: str
    image: Any
    caption: Any
    image_id: Any = None


class WebCaptionBuilder(ImageCaptionBuilder):
    """Pictures of the web with one caption each.

    Reads a list of ``{"image", "caption"}`` (as LAVIS's scripts and `lavislite download` make them,
    paths absolute or not) or the official list of URLs, whose pictures are called `picture_name`:
    CC3M's and CC12M's tables without a header, SBU's ``{"image_urls", "captions"}``, or a list of
    ``{"url", "caption"}``.
    """

    Config: ClassVar[type[DatasetConfig]] = WebCaptionConfig
    cfg: WebCaptionConfig
    looks_at_folder = True

    def _records(self, files: list[Path], split: str, beside: bool) -> Iterator[Record]:
        for file in files:
            folder = file.parent if beside else self._folder(split) or Path()
            there = _Present(folder)
            rows = blank = kept = 0
            for row in _rows(file, self.cfg.columns, split):
                rows += 1
                if isinstance(row.caption, str) and not row.caption.strip():
                    blank += 1
                    continue
                record = checked(file, row.where, row.image, row.caption, row.image_id)
                image = there.find(record.image)
                if image is None and self.cfg.skip_missing:
                    continue
                kept += 1
                name = record.image if image is None else image
                yield Record(
                    str(folder / name) if beside else name, record.captions, record.image_id
                )
            if not kept:
                gone = "" if folder.is_dir() else ", a folder that does not exist"
                raise DataError(
                    f"{file}: none of the {rows} pictures is in {folder}{gone}. {self.advice}"
                )
            logger.info(
                "%s/%s: %s: %d of %d rows are used (%d captions are blank, other pictures missing)",
                *(self.name, split, file, kept, rows, blank),
            )


class _Present:
    """Which files exist; every folder is read once."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[str, set[str]] = {}

    def find(self, name: str) -> str | None:
        """`name` if it is there; if only its last part is, in the folder itself, then that."""
        path, base = os.path.join(self._root, name), os.path.basename(name)  # noqa: PTH118, PTH119
        if base in self._inside(os.path.dirname(path)):  # noqa: PTH120
            return name
        # Lists with absolute paths were made on another machine.
        return base if name != base and base in self._inside(self._root) else None

    def _inside(self, folder: str) -> set[str]:
        if folder not in self._names:
            self._names[folder] = set(os.listdir(folder)) if Path(folder).is_dir() else set()  # noqa: PTH208
        return self._names[folder]


# ----------------------------------------------------------------------------------------- readers


def _rows(file: Path, columns: Mapping[str, str], split: str) -> Iterator[_Row]:
    existing(file)
    if file.suffix.lower() == ".tsv":
        order = _url_columns(file)
        if order is not None:
            return _pairs(file, *order)
    elif file.suffix.lower() == ".json":
        entries = stream_json(file)
        first = next(entries, None)
        if first is not None and first.key in _SBU:
            return _two_lists(file)
        if first == (None, 0, []):
            item = next(entries, None)
            if item is not None and isinstance(item.value, dict) and "caption" in item.value:
                return _items(chain([item], entries), file)
    return (
        _Row("record", record.image, record.captions, record.image_id)
        for record in read_records(file, columns=columns, split=split)
    )


def _url_columns(file: Path) -> tuple[int, int, bool] | None:
    """Where URL and caption stand, and whether a header says so; None: an ordinary table."""
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        cells = lines.readline().rstrip("\r\n").split("\t")
    if {"url", "caption"} <= set(cells) and "image" not in cells:
        return cells.index("url"), cells.index("caption"), True
    urls = [k for k, cell in enumerate(cells) if cell.startswith(("http://", "https://"))]
    return (urls[0], 1 - urls[0], False) if len(cells) == 2 and urls else None


def _pairs(file: Path, url: int, caption: int, header: bool) -> Iterator[_Row]:
    # Only "\n" ends a row: captions hold other line separators.
    with file.open(encoding="utf-8-sig", newline="\n", errors="replace") as lines:
        for n, line in enumerate(lines):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:  # counts as a row, as in the download
                continue
            if len(cells) <= max(url, caption):
                raise DataError(
                    f"{file}, line {n + 1}: expected a URL and a caption with a tab between them, "
                    f"saw {short(line)}."
                )
            if n or not header:
                row = n - 1 if header else n
                yield _Row(f"line {n + 1}", picture_name(row, cells[url].strip()), cells[caption])


def _two_lists(file: Path) -> Iterator[_Row]:
    """SBU's: all URLs in one list, all captions in another."""
    lists = {
        key: PackedStrings(
            str(entry.value) for entry in stream_json(file) if entry.key == key and entry.n
        )
        for key in _SBU
    }
    urls, captions = (lists[key] for key in _SBU)
    if len(urls) != len(captions):
        raise DataError(
            f"{file}: {len(urls)} image_urls and {len(captions)} captions; as many are expected."
        )
    for n, (url, caption) in enumerate(zip(urls, captions, strict=True)):
        yield _Row(f"caption {n + 1}", picture_name(n, url.strip()), caption)


def _items(items: Iterator[Entry], file: Path) -> Iterator[_Row]:
    for _, n, value in items:
        if not isinstance(value, dict) or not ("image" in value or "url" in value):
            raise DataError(
                f"{file}, record {n}: expected `image` (or `url`) and `caption`, saw "
                f"{short(value)}."
            )
        image = value["image"] if "image" in value else picture_name(n - 1, str(value["url"]))
        yield _Row(f"record {n}", image, value.get("caption"), value.get("image_id"))


# ---------------------------------------------------------------------------------------- builders


@datasets.register("conceptual_caption_3m")
class ConceptualCaption3MBuilder(WebCaptionBuilder):
    """Conceptual Captions, 3 million."""

    advice = "`lavislite download conceptual_caption_3m` fetches what is left of them."


@datasets.register("conceptual_caption_12m")
class ConceptualCaption12MBuilder(WebCaptionBuilder):
    """Conceptual Captions, 12 million."""

    advice = "`lavislite download conceptual_caption_12m` fetches what is left of them."


@datasets.register("sbu_caption")
class SBUCaptionBuilder(WebCaptionBuilder):
    """SBU: a million pictures of Flickr with their users' captions."""

    advice = "`lavislite download sbu_caption` fetches what is left of them."
