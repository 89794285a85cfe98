"""Files of visual questions, of many shapes, one piece at a time.

What a file holds is seen from its content (from the suffix for tables):

- records: a JSON list, one object per line, or a CSV or TSV table, each with a question, a picture
  and answers, as LAVIS prepares them or as you write them. `answer` is one text or the list of all
  annotators' answers; in a table, a JSON list such as ``["a cat", "cat"]``;
- the VQA server's questions ``{"questions": [{"question_id", "image_id", "question"}]}`` and
  annotations ``{"annotations": [{"question_id", "answers"}]}`` (VQAv2, OK-VQA);
- GQA ``{question id: {"imageId", "question", "answer", "types", ...}}``;
- A-OKVQA ``[{"question_id", "image_id", "question", "choices", "direct_answers", ...}]``;
- Visual Genome ``[{"id", "qas": [{"qa_id", "question", "answer"}]}]``, and the file with the URLs
  of its pictures ``[{"image_id", "url"}]``;
- a list of texts: the answers to choose from.

Ids are numbers or texts; 5 and "5" are the same. A list of answers may have any length. An empty
answer in it is that of an annotator who had none: it counts in scoring, and is not trained on. A
question with nothing but empty answers has none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lavislite.common.errors import DataError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.json_stream import stream_json, text_value
from lavislite.datasets.question_records import (
    Choice,
    Names,
    Piece,
    annotation,
    cell,
    located,
    question,
    stranger,
    visual_genome,
)
from lavislite.datasets.rows import TABLES, is_json_lines, json_lines, table

# What a file may hold, by the builder that reads it.
FORMATS = {
    "image_vqa": "records",
    "coco_vqa": "VQAv2's questions",
    "vg_vqa": "Visual Genome's questions",
    "aok_vqa": "A-OKVQA's questions",
    "gqa": "GQA's questions",
}
_PREPARED = {"vqa": "coco_vqa", "vg": "vg_vqa"}  # what LAVIS's records are, by their `dataset`
_LISTS = {"questions": "question", "annotations": "annotation"}


class _Raw(NamedTuple):
    """A record as the file has it: in which list (None: the only one), where, its id if unsaid."""

    list: str | None
    where: str
    value: Any
    default_id: str


class QuestionFile:
    """The pieces of a file, in its order.

    Args:
        names: of the fields, in records of your own.
        by_number: pictures may be known by their number only.
        formats: keys of `FORMATS` that the file may hold.
        reader: whose rule that is, for messages.

    Attributes:
        subset: the `data_subtype` of the VQA server's files, such as "val2014", once their records
            come; "" in others.
        where: file and record that were read last, for messages.

    Iterating raises DataError for an empty or malformed file, one that holds something else, or a
    record that lacks something; it names file and record.
    """

    def __init__(
        self,
        file: Path,
        names: Names,
        *,
        by_number: bool,
        formats: Collection[str],
        reader: str,
    ) -> None:
        self.file, self.names, self.by_number = file, names, by_number
        self.formats, self.reader = formats, reader
        self.subset, self.where = "", str(file)
        self._choices: bool | None = None  # whether it lists answers to choose from
        self._unseen = dict(names.columns)  # column names that no record had so far

    def __iter__(self) -> Iterator[Piece]:
        raw, pieces = None, 0
        for raw in self._raws():
            for piece in self._pieces(raw):
                pieces += 1
                yield piece
        if raw is None or not pieces:
            size = self.file.stat().st_size
            raise DataError(f"{self.file}: holds no questions ({size} bytes).")
        if self._unseen and isinstance(raw.value, Mapping) and raw.list is None:
            field, name = next(iter(self._unseen.items()))
            keys = [str(key) for key in raw.value]
            raise DataError(
                f"{self.file}: columns.{field}: no record has '{name}'.{did_you_mean(name, keys)} "
                f"The last one has {', '.join(keys)}."
            )

    # ----------------------------------------------------------------------------------- records

    def _raws(self) -> Iterator[_Raw]:
        file, stem = self.file, self.file.stem
        delimiter = TABLES.get(file.suffix.lower())
        if delimiter is not None:
            for row in table(file, delimiter):
                fields = cell(row.fields, self.names, f"{file}, {row.where}")
                yield _Raw(None, row.where, fields, f"{stem}:{row.where.split()[-1]}")
        elif is_json_lines(file):
            for row in json_lines(file):
                yield _Raw(None, row.where, row.fields, f"{stem}:{row.where.split()[-1]}")
        else:
            yield from self._json()

    def _json(self) -> Iterator[_Raw]:
        by_id, known, keys = False, False, []
        for key, n, value in stream_json(self.file):
            if n > 0 and key is None:
                yield _Raw(None, f"record {n}", value, f"{self.file.stem}:{n}")
            elif n > 0 and key in _LISTS:
                yield _Raw(key, f"{_LISTS[key]} {n}", value, f"{self.file.stem}:{n}")
            elif n == 0 and key is None and value != []:
                raise self._unknown(f"a {type(value).__name__}")
            elif n == 0:
                by_id = by_id or (isinstance(value, dict) and self._has_id(value))
                known = known or by_id or key is None or key in _LISTS
                keys.append(str(key))
                if key in _LISTS:
                    self.subset = self.subset or text_value(self.file, "data_subtype") or ""
                if by_id:
                    yield _Raw(None, f"question {key}", value, str(key))
        if not known:
            raise self._unknown(f"an object with the keys {', '.join(keys[:10]) or '(none)'}")

    def _has_id(self, value: Mapping[str, Any]) -> bool:
        """Whether the value of a key at the top is a record, and the key its id."""
        if "imageId" in value or self.names.of(value, "question") is not None:
            return True
        what = stranger(value)
        if what is not None:
            raise DataError(f"{self.file}: holds {what}, not questions.")
        return False

    def _unknown(self, seen: str) -> DataError:
        return DataError(
            f"{self.file}: expected a list of records, or an object with `questions` or "
            f"`annotations`, saw {seen}."
        )

    # ------------------------------------------------------------------------------------ pieces

    def _pieces(self, raw: _Raw) -> Iterator[Piece]:
        where, record = f"{self.file}, {raw.where}", raw.value
        self.where = where
        if self._choices is None:
            self._choices = isinstance(record, str) and raw.list is None
        if self._choices and isinstance(record, str):
            yield Choice(record)
            return
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, saw {record!r}.")
        if self._unseen:
            self._unseen = {f: name for f, name in self._unseen.items() if name not in record}
        if raw.list == "annotations":
            yield annotation(where, record)
        elif "qas" in record:
            self._check_format("vg_vqa")
            yield from visual_genome(where, record)
        elif "url" in record and not {"question", "caption"} & record.keys():
            yield located(where, record)
        else:
            self._check_format(_format(raw.list, record))
            yield question(
                where,
                record,
                self.names,
                default_id=raw.default_id,
                subset=self.subset if raw.list else "",
                by_number=self.by_number,
            )

    def _check_format(self, found: str) -> None:
        if found not in self.formats:
            known = " or ".join(FORMATS[name] for name in self.formats)
            raise DataError(
                f"{self.file}: holds {FORMATS[found]}, where {self.reader} expects {known}. To "
                f"read them, write `builder: {found}`."
            )


def _format(key: str | None, record: Mapping[str, Any]) -> str:
    if key == "questions":
        return "coco_vqa"
    if "imageId" in record:
        return "gqa"
    if "direct_answers" in record or "difficult_direct_answer" in record:
        return "aok_vqa"
    return _PREPARED.get(str(record.get("dataset")), "image_vqa")
