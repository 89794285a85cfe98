"""Annotation files of many shapes to one kind of record: a picture, its captions, its id.

Which reader a file gets is decided by its content (and by the suffix, for tables):

- a JSON list of records, one JSON record per line, a CSV or TSV table with a header line;
- COCO captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``;
- Karpathy's splits: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import read_json
from lavislite.common.registry import did_you_mean

FIELDS = ("image", "caption", "image_id")
TABLES = {".csv": ",", ".tsv": "\t"}
# Words other people use, to guess which column was meant.
_SYNONYMS = {
    "image": ("file_name", "filename", "image_path", "img_path", "path", "file", "img", "picture"),
    "caption": ("captions", "text", "sentence", "sentences", "description", "title", "raw"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated picture.

    Attributes:
        image: file name as the annotations have it.
        captions: one or more.
        image_id: None when the annotations have no id.
    """

    image: str
    captions: list[str]
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as the file has it, and where it is: "record 3" or "line 4"."""

    where: str
    fields: Mapping[str, Any]


def read_records(
    path: str | Path, *, columns: Mapping[str, str] | None = None, split: str = "train"
) -> Iterator[Record]:
    """The records of an annotation file, in its order.

    Args:
        columns: our field (image, caption, image_id) -> its name in the file; a Karpathy or COCO
            file needs none.
        split: which part of a Karpathy file; "train" takes its "restval" as well.

    Raises:
        ConfigError: `columns` names a field that does not exist.
        DataError: missing, empty or malformed file, or a record without picture or caption.
    """
    names = _names(columns or {})
    file = existing(Path(path))
    if file.suffix.lower() in TABLES:
        raws: Iterable[Raw] = _table(file, TABLES[file.suffix.lower()])
    elif _is_json_lines(file):
        raws = _json_lines(file)
    else:
        content = read_json(file)
        if _is_karpathy(content):
            yield from _some(_karpathy(file, content, split), file)
            return
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            yield from _some(_coco(file, content), file)
            return
        raws = _json_records(file, content)
    yield from _some((_record(file, raw, names) for raw in raws), file)


def existing(path: Path) -> Path:
    """`path`, which must be a file.

    Raises:
        DataError: it is not; the nearest name in its folder is offered.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path} is a folder; an annotation file is expected.")
    if not path.parent.is_dir():
        raise DataError(f"No annotation file {path}: the folder {path.parent} does not exist.")
    near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    raise DataError(f"No annotation file {path}.{near}")


# ----------------------------------------------------------------------------------------- readers


def _table(file: Path, delimiter: str) -> Iterator[Raw]:
    """Rows of a table whose first line names the columns.

    In a TSV file a quotation mark in the middle of a field is just that: web captions are full of
    lonely ones, which would swallow the lines that follow.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            if rows.fieldnames is not None and len(rows.fieldnames) == 1:
                _check_delimiter(file, rows.fieldnames[0], delimiter)
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(
                        f"{file}, line {rows.line_num}: expected {len(rows.fieldnames or ())} "
                        f"fields ({', '.join(rows.fieldnames or ())}), saw "
                        f"{_n_fields(row)}. Does a field hold an unquoted {delimiter!r}?"
                    )
                yield Raw(f"line {rows.line_num}", _unquoted(row) if quoting else row)
        except csv.Error as error:
            raise DataError(f"{file}, line {rows.line_num}: not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text: {error}") from error


def _check_delimiter(file: Path, header: str, delimiter: str) -> None:
    other = "," if delimiter == "\t" else "\t"
    if ";" in header:
        raise DataError(
            f"{file}: no {delimiter!r} in the header line '{header}', but ';'. "
            f"Save the file with {delimiter!r} between the fields."
        )
    if other in header:
        suffix = next(name for name, mark in TABLES.items() if mark == other)
        raise DataError(
            f"{file}: no {delimiter!r} in the header line '{header}', but {other!r}. "
            f"Is it a {suffix} file?"
        )


def _n_fields(row: Mapping[Any, Any]) -> int:
    return sum(len(value) if key is None else value is not None for key, value in row.items())


def _unquoted(row: Mapping[str, str]) -> dict[str, str]:
    """Fields that were quoted as a whole (as pandas writes them) without their quotation marks."""
    return {
        key: value[1:-1].replace('""', '"')
        if len(value) > 1 and value[0] == value[-1] == '"'
        else value
        for key, value in row.items()
    }


def _is_json_lines(file: Path) -> bool:
    """Whether the first line is a JSON object all by itself, with more to follow."""
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with file.open("rb") as stream:
        first = stream.readline(1 << 20).strip()
        if not (first.startswith(b"{") and first.endswith(b"}")):
            return False
        try:
            json.loads(first)
        except ValueError:
            return False
        return stream.readline(1 << 20).strip().startswith(b"{")


def _json_lines(file: Path) -> Iterator[Raw]:
    with file.open(encoding="utf-8-sig") as lines:
        try:
            for n, line in enumerate(lines, start=1):
                if line.strip():
                    yield Raw(f"line {n}", _object(json.loads(line), file, f"line {n}"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}, line {n}: not valid JSON: {error.msg} (column {error.colno}). "
                "One JSON object per line is expected."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text: {error}") from error


def _json_records(file: Path, content: Any) -> Iterator[Raw]:
    if isinstance(content, dict) and content and all(isinstance(v, dict) for v in content.values()):
        content = list(content.values())  # id -> record
    if not isinstance(content, list):
        seen = (
            f"an object with the keys {_listed(content)}"
            if isinstance(content, dict)
            else (f"a {type(content).__name__}")
        )
        raise DataError(
            f"{file}: expected a list of records, COCO captions (images, annotations) or "
            f"Karpathy's splits, saw {seen}."
        )
    for n, fields in enumerate(content, start=1):
        yield Raw(f"record {n}", _object(fields, file, f"record {n}"))


def _object(value: Any, file: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{file}, {where}: expected an object with image and caption, saw {_short(value)}."
        )
    return value


def _is_karpathy(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and bool(content["images"])
        and isinstance(content["images"][0], dict)
        and {"sentences", "filename"} <= content["images"][0].keys()
    )


def _karpathy(file: Path, content: Mapping[str, Any], split: str) -> Iterator[Record]:
    wanted = {"train", "restval"} if split == "train" else {split}
    known = {str(image.get("split")) for image in content["images"]}
    if not wanted & known:
        raise DataError(
            f"{file}: has no split '{split}'.{did_you_mean(split, known)} It has: {_listed(known)}."
        )
    for n, image in enumerate(content["images"], start=1):
        if image.get("split") not in wanted:
            continue
        try:
            captions = [sentence["raw"] for sentence in image["sentences"]]
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, image {n}: incomplete record: {error!r}.") from error
        image_id = image.get("cocoid", image.get("imgid"))
        yield _checked(file, f"image {n}", name, captions, image_id)


def _coco(file: Path, content: Mapping[str, Any]) -> Iterator[Record]:
    """Pictures in the order of `images`; those without a caption are left out."""
    try:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        names = {image["id"]: image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: images need `id` and `file_name`: {error!r}.") from error
    for n, annotation in enumerate(content["annotations"], start=1):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= annotation.keys():
            seen = _listed(annotation) if isinstance(annotation, dict) else _short(annotation)
            raise DataError(
                f"{file}, annotation {n}: expected `image_id` and `caption`, saw {seen}."
            )
        if annotation["image_id"] not in captions:
            raise DataError(
                f"{file}, annotation {n}: image_id {annotation['image_id']!r} is not in `images`."
            )
        captions[annotation["image_id"]].append(annotation["caption"])
    for image_id, texts in captions.items():
        if texts:
            yield _checked(file, f"image id {image_id}", names[image_id], texts, image_id)


# ----------------------------------------------------------------------------------------- records


def _record(file: Path, raw: Raw, names: Mapping[str, str]) -> Record:
    for field in ("image", "caption"):
        if raw.fields.get(names[field]) is None:
            raise DataError(_missing(file, raw, field, names[field]))
    return _checked(
        file,
        raw.where,
        raw.fields[names["image"]],
        raw.fields[names["caption"]],
        raw.fields.get(names["image_id"]),
    )


def _checked(file: Path, where: str, image: Any, caption: Any, image_id: Any) -> Record:
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{file}, {where}: image: expected a file name, saw {_short(image)}.")
    if not isinstance(captions, list) or not captions:
        raise DataError(
            f"{file}, {where}: caption: expected a string or a list of them, saw {_short(caption)}."
        )
    for text in captions:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{file}, {where}: caption: expected some text, saw {_short(text)}.")
    if isinstance(image_id, (dict, list)):
        raise DataError(
            f"{file}, {where}: image_id: expected a number or a string, saw {_short(image_id)}."
        )
    return Record(image, captions, None if image_id is None or image_id == "" else str(image_id))


def _missing(file: Path, raw: Raw, field: str, name: str) -> str:
    keys = [str(key) for key in raw.fields]
    if name in raw.fields:
        return f"{file}, {raw.where}: `{name}` is empty."
    guess = next((key for key in _SYNONYMS[field] if key in keys), None)
    if guess is not None and name == field:
        hint = f" If '{guess}' holds it, set `columns: {{{field}: {guess}}}`."
    else:
        hint = did_you_mean(name, keys)
    return f"{file}, {raw.where}: no `{name}` among the keys {_listed(keys)}.{hint}"


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


def _listed(names: Iterable[Any]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") or "(none)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
