"""Data sets that are lists of pictures on the web: fetch what is left of them, and say how much.

A picture and its caption come from one row and are stored under the row's own name,
``<row>_<crc32 of the URL>.jpg`` unless the list names it. So nothing can slip when a row is missing
or a URL occurs twice.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lavislite.common.errors import DataError, UserError
from lavislite.common.io import atomic_write, read_json, require_path
from lavislite.common.transfer import picture_name
from lavislite.download.description import PictureList
from lavislite.download.parallel import in_parallel
from lavislite.download.pictures import PictureError, fetch_picture

_GIVE_UP = 200  # so many first pictures without a single connection: it is our network


@dataclass(frozen=True)
class Row:
    index: int
    url: str
    caption: str | None
    name: str  # of the picture's file


@dataclass
class Share:
    """How much of a list could be had."""

    there: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        percent = 100 * self.there / self.rows if self.rows else 0.0
        text = f"{self.there:,} of {self.rows:,} pictures are there ({percent:.1f} %)"
        why = ", ".join(f"{reason}: {count:,}" for reason, count in self.reasons.most_common(5))
        return f"{text}; not had: {why}" if why else text


def fetch_list(entry: PictureList, root: Path, workers: int, limit: int | None = None) -> Share:
    """Fetch the pictures of `entry` that are not there yet, then write its annotation file.

    What failed is recorded in ``<images>.failed.jsonl``; a later call asks again only where there
    is hope. `limit`: the first so many rows only.

    Raises:
        UserError: the list is not there, or there is no network.
        DataError: it is not what it should be.
    """
    path = require_path(root / entry.path, "list of pictures")
    images = root / entry.images
    images.mkdir(parents=True, exist_ok=True)

    log = images.with_name(f"{images.name}.failed.jsonl")
    share = Share()
    hopeless = _hopeless(log)
    rows = islice(read_rows(path, entry.columns), limit)
    wanted = _not_there(rows, images, hopeless, share)

    def fetch(row: Row) -> None:
        fetch_picture(row.url, images / row.name, entry.shorter_side)

    results = in_parallel(fetch, wanted, workers)
    with log.open("a", encoding="utf-8") as failures:
        for row, error in _counted(results, entry.images, entry.pictures):
            if error is None:
                share.there += 1
                continue
            if not isinstance(error, PictureError):
                raise error
            share.reasons[str(error)] += 1
            record = {"row": row.index, "url": row.url, "why": str(error), "final": error.final}
            failures.write(json.dumps(record) + "\n")
            if not share.there and sum(share.reasons.values()) >= _GIVE_UP and not hopeless:
                raise UserError(
                    f"{path}: none of the first {_GIVE_UP} pictures could be fetched ({error}). "
                    "Is there a network?"
                )
    if not share.there:
        raise UserError(f"{path}: no picture could be fetched. {share}")
    if entry.annotations is not None:
        every = read_rows(path, entry.columns)  # also what came before, without the limit
        _write_annotations(root / entry.annotations, every, images)
    return share


def _not_there(
    rows: Iterable[Row], images: Path, hopeless: dict[int, str], share: Share
) -> Iterator[Row]:
    """The rows still to fetch; counts the others."""
    for row in rows:
        share.rows += 1
        if _stored(images / row.name):
            share.there += 1
        elif (why := hopeless.get(_key(row.index, row.url))) is not None:
            share.reasons[why] += 1
        else:
            yield row


def _stored(path: Path) -> bool:
    try:
        return path.stat().st_size > 0  # empty: the machine went down before it was written
    except OSError:
        return False


def _hopeless(log: Path) -> dict[int, str]:
    """The rows not to ask for again, by `_key`, and why. They may be millions."""
    found: dict[int, str] = {}
    if not log.exists():
        return found
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                if record["final"]:
                    found[_key(record["row"], record["url"])] = sys.intern(record["why"])
            except (ValueError, KeyError):  # the last line of a call that was killed
                continue
    return found


def _key(row: int, url: str) -> int:
    return row << 32 | zlib.crc32(url.encode("utf-8", "surrogatepass"))


def _counted(results: Iterable[Any], name: str, total: int | None) -> Iterator[Any]:
    from tqdm import tqdm

    quiet = {} if sys.stderr.isatty() else {"mininterval": 60.0}
    return iter(tqdm(results, desc=name, total=total, unit="picture", **quiet))


def _write_annotations(path: Path, rows: Iterable[Row], images: Path) -> None:
    """A JSON list of ``{"image", "caption"}`` for the rows whose picture is there."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for row in rows:
                if row.caption and _stored(images / row.name):
                    record = {"image": row.name, "caption": row.caption}
                    file.write(separator + json.dumps(record, ensure_ascii=False))
                    separator = ",\n"
            file.write("[]\n" if separator == "[\n" else "\n]\n")

    atomic_write(path, write)


# ---------------------------------------------------------------------------------- reading lists


def read_rows(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """The rows of a list: tab-separated with these `columns`, or one of the JSON layouts.

    A first line that names the columns is believed, and is not counted. JSON: a list of
    ``{"url", "caption"(, "image")}``, SBU's ``{"image_urls", "captions"}``, or COCO's
    ``{"images": [{"coco_url", "file_name"}]}``. Rows without a URL are left out.

    Raises:
        DataError: the file holds something else; names file and row.
    """
    if path.suffix.lower() == ".tsv":
        return _tsv_rows(path, columns)
    return _json_rows(path)


def _tsv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    # Only "\n" ends a row: captions hold other line separators.
    with path.open(encoding="utf-8-sig", newline="\n", errors="replace") as lines:
        first = lines.readline().rstrip("\r\n").split("\t")
        header = {"url", "caption"} <= set(first)
        if header:
            columns = tuple(first)
        else:
            lines.seek(0)
        url_at, caption_at = columns.index("url"), columns.index("caption")
        for index, line in enumerate(lines):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:
                continue
            if len(cells) < len(columns):
                raise DataError(
                    f"{path}, row {index}: expected {len(columns)} tab-separated columns "
                    f"({', '.join(columns)}), saw {len(cells)}: {line[:80]!r}"
                )
            url, caption = cells[url_at].strip(), cells[caption_at].strip()
            if index == 0 and _is_url(caption) and not _is_url(url):
                raise DataError(
                    f"{path}: expected the columns {', '.join(columns)}, but the URL is in column "
                    f"{caption_at + 1}. Is it the list of another data set?"
                )
            if url:
                yield Row(index, url, caption, picture_name(index, url))


def _json_rows(path: Path) -> Iterator[Row]:
    content = read_json(path)
    take: Callable[[int, Any], Row | None]
    if isinstance(content, dict) and {"image_urls", "captions"} <= content.keys():
        urls, captions = content["image_urls"], content["captions"]
        if len(urls) != len(captions):
            raise DataError(f"{path}: {len(urls)} image_urls, but {len(captions)} captions")
        items: Any = list(zip(urls, captions, strict=True))
        take = _sbu_row
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        items, take = content["images"], _coco_row
    elif isinstance(content, list):
        items, take = content, _record_row
    else:
        raise DataError(
            f"{path}: expected a list of {{url, caption}}, or `image_urls` and `captions`, or "
            "`images`"
        )
    for index, item in enumerate(items):
        try:
            row = take(index, item)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, row {index}: not understood: {str(item)[:120]}") from error
        if row is not None:
            yield row


def _sbu_row(index: int, item: tuple[str, str]) -> Row:
    url, caption = item[0].strip(), item[1].strip()
    return Row(index, url, caption, picture_name(index, url))


def _coco_row(index: int, item: dict[str, Any]) -> Row:
    return Row(index, item["coco_url"], None, _safe(item["file_name"], index, item["coco_url"]))


def _record_row(index: int, item: dict[str, Any]) -> Row | None:
    url = item["url"]
    if not url:
        return None
    return Row(index, url, item["caption"].strip(), _safe(item.get("image"), index, url))


def _safe(name: Any, index: int, url: str) -> str:
    """`name` if it is a plain file name, otherwise the row's own."""
    if isinstance(name, str) and re.fullmatch(r"\w[\w.\-]{0,150}", name):
        return name
    return picture_name(index, url)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
