"""Annotation files of many shapes to one kind of record: a picture, its captions, its id.

Which reader a file gets is decided by its content (and by the suffix, for tables):

- a JSON list of records, one JSON record per line, a CSV or TSV table with a header line;
- COCO captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``;
- Karpathy's splits: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``;
- Visual Genome's region descriptions: ``[{"id", "regions": [{"phrase"}]}]``;
- Flickr30k's captions: ``results_20130124.token``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import read_json
from lavislite.common.registry import did_you_mean
from lavislite.datasets.json_stream import stream_json
from lavislite.datasets.recognise import is_nocaps, looks_like
from lavislite.datasets.records import Record, checked, existing, listed
from lavislite.datasets.releases import coco, is_karpathy, karpathy, regions, tokens
from lavislite.datasets.rows import (
    TABLES,
    Raw,
    is_json_lines,
    json_items,
    json_lines,
    json_records,
    table,
)

__all__ = ["Record", "existing", "read_records"]

FIELDS = ("image", "caption", "image_id")
# Words other people use, to guess which column was meant.
_SYNONYMS = {
    "image": ("file_name", "filename", "image_path", "img_path", "path", "file", "img", "picture"),
    "caption": ("captions", "text", "sentence", "sentences", "description", "title", "raw"),
}


def read_records(
    path: str | Path, *, columns: Mapping[str, str] | None = None, split: str = "train"
) -> Iterator[Record]:
    """The records of an annotation file, in its order.

    Args:
        columns: our field (image, caption, image_id) -> its name in the file; the layouts of
            releases need none.
        split: which part of a Karpathy file; "train" takes its "restval" as well.

    Raises:
        ConfigError: `columns` names a field that does not exist.
        DataError: missing, empty or malformed file, or a record without picture or caption; or the
            file of another data set, which is named.
    """
    names = _names(columns or {})
    file = existing(Path(path))
    suffix = file.suffix.lower()
    if suffix in TABLES:
        records = _records(file, table(file, TABLES[suffix]), names)
    elif suffix == ".token":
        records = tokens(file)
    elif is_json_lines(file):
        records = _records(file, json_lines(file), names)
    else:
        records = _json(file, names, split)
    yield from _some(records, file)


def _json(file: Path, names: Mapping[str, str], split: str) -> Iterator[Record]:
    entries = stream_json(file)
    if next(entries, None) == (None, 0, []):
        first = next(entries, None)
        if first is None:
            return iter(())
        items = chain([first], entries)
        if isinstance(first.value, dict) and "regions" in first.value:
            return regions(items, file)
        return _records(file, json_items(items, file), names)
    content = read_json(file)
    if is_nocaps(content):
        raise DataError(f"{file}: not one of this data set's files.{looks_like(content)}")
    if is_karpathy(content):
        return karpathy(file, content, split)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return coco(file, content)
    return _records(file, json_records(content, file), names)


def _records(file: Path, raws: Iterable[Raw], names: Mapping[str, str]) -> Iterator[Record]:
    return (_record(file, raw, names) for raw in raws)


def _record(file: Path, raw: Raw, names: Mapping[str, str]) -> Record:
    for field in ("image", "caption"):
        if raw.fields.get(names[field]) is None:
            raise DataError(_missing(file, raw, field, names[field]))
    return checked(
        file,
        raw.where,
        raw.fields[names["image"]],
        raw.fields[names["caption"]],
        raw.fields.get(names["image_id"]),
    )


def _missing(file: Path, raw: Raw, field: str, name: str) -> str:
    keys = [str(key) for key in raw.fields]
    if name in raw.fields:
        return f"{file}, {raw.where}: `{name}` is empty."
    other = looks_like(raw.fields)
    if other:
        return f"{file}, {raw.where}: no `{name}` among the keys {listed(keys)}.{other}"
    guess = next((key for key in _SYNONYMS[field] if key in keys), None)
    if guess is not None and name == field:
        hint = f" If '{guess}' holds it, set `columns: {{{field}: {guess}}}`."
    else:
        hint = did_you_mean(name, keys)
    return f"{file}, {raw.where}: no `{name}` among the keys {listed(keys)}.{hint}"


def _names(columns: Mapping[str, str]) -> dict[str, str]:
    for field in columns:
        if field not in FIELDS:
            raise ConfigError(
                f"columns.{field}: not one of our fields.{did_you_mean(field, FIELDS)} "
                f"Known: {', '.join(FIELDS)} (each followed by its name in your file)"
            )
    return {field: columns.get(field, field) for field in FIELDS}  # its own name by default


def _some(records: Iterable[Record], file: Path) -> Iterator[Record]:
    n = 0
    for n, record in enumerate(records, start=1):  # noqa: B007
        yield record
    if n == 0:
        size = file.stat().st_size
        raise DataError(f"{file}: holds no records ({size} bytes).")
