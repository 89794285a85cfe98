"""Rows of tables and lists of objects, each with the place where it stands in its file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lavislite.common.errors import DataError
from lavislite.datasets.json_stream import Entry
from lavislite.datasets.recognise import looks_like
from lavislite.datasets.records import listed, short

TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as the file has it, and where it is: "record 3" or "line 4"."""

    where: str
    fields: Mapping[str, Any]


def table(file: Path, delimiter: str) -> Iterator[Raw]:
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


def is_json_lines(file: Path) -> bool:
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


def json_lines(file: Path) -> Iterator[Raw]:
    """The records of a file with one JSON object per line."""
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


def json_items(items: Iterable[Entry], file: Path) -> Iterator[Raw]:
    """The records of a JSON list."""
    for item in items:
        yield Raw(f"record {item.n}", _object(item.value, file, f"record {item.n}"))


def json_records(content: Any, file: Path) -> Iterator[Raw]:
    """The records of an object ``{id: record}``."""
    if not (
        isinstance(content, dict) and content and all(isinstance(v, dict) for v in content.values())
    ):
        seen = (
            f"an object with the keys {listed(content)}"
            if isinstance(content, dict)
            else f"a {type(content).__name__}"
        )
        raise DataError(
            f"{file}: expected a list of records, COCO captions (images, annotations) or "
            f"Karpathy's splits, saw {seen}.{looks_like(content)}"
        )
    for n, fields in enumerate(content.values(), start=1):
        yield Raw(f"record {n}", fields)


def _object(value: Any, file: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{file}, {where}: expected an object with image and caption, saw {short(value)}."
        )
    return value
