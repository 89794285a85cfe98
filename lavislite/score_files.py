"""The files that `lavislite score` reads: results and annotations in each server's format."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any

from lavislite.common.errors import DataError, UserError
from lavislite.common.io import read_json, require_path
from lavislite.metrics.results import check_ids, rows_by_id

Predictions = dict[str, dict[Any, str]]  # "direct_answer", "multiple_choice" to answers by id


def read(path: str) -> Any:
    """The content of a JSON file, also when it is compressed (``.gz``).

    Raises:
        UserError: no such file, or a folder.
        DataError: not JSON, or damaged.
    """
    found = require_path(path)
    if found.is_dir():
        raise UserError(f"{path} is a folder; expected a JSON file.")
    try:
        if found.suffix != ".gz":
            return read_json(found)
        return json.loads(gzip.decompress(found.read_bytes()))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged, it cannot be decompressed: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except ValueError as error:  # JSON and UTF-8 alike
        raise DataError(f"{path}: not valid JSON: {error}") from error


def read_results(path: str) -> list[Any]:
    """A result file that is a list of rows; what is in the rows is not looked at."""
    content = read(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of results, saw {describe(content)}.")
    return content


def read_aokvqa_questions(path: str) -> list[Any]:
    """A-OKVQA's question file; what is in the records is not looked at."""
    content = read(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected A-OKVQA questions (a list), saw {describe(content)}.")
    return content


def read_rows(path: str, key: str, what: str) -> list[Any]:
    """The list under `key` of an official file, or the list that is the whole file."""
    content = read(path)
    rows = content.get(key) if isinstance(content, Mapping) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: expected {what} (an object with a list `{key}`), saw {describe(content)}."
        )
    return rows


def read_annotations(path: str) -> list[Any]:
    """The annotations of a VQA-like file, each with question_id and answers."""
    rows = read_rows(path, "annotations", "VQA annotations")
    _check_rows(path, "annotation", rows, "VQA annotations", "answers")
    return rows


def check_questions(path: str, annotations: list[Any], annotations_path: str) -> None:
    """Refuse a question file that does not belong to the annotations."""
    rows = read_rows(path, "questions", "VQA questions")
    _check_rows(path, "question", rows, "VQA questions", "question")
    try:
        check_ids((a["question_id"] for a in annotations), (q["question_id"] for q in rows))
    except ValueError as error:
        raise DataError(
            f"{annotations_path} does not belong to the questions of {path}: "
            f"{str(error).replace('have no result', 'have no annotation')}."
        ) from error


def read_object(path: str, what: str) -> dict[str, Any]:
    """A file that is an object by id; `what` is one of the kinds that `describe` knows."""
    content = read(path)
    seen = describe(content)
    entry = next(iter(content.values()), None) if isinstance(content, dict) else None
    known = {name for signs in (_OBJECTS, _ENTRIES, _ROWS) for _, name in signs}
    if not isinstance(entry, Mapping) or (seen in known and seen != what):
        raise DataError(f"{path}: expected {what} (an object by id), saw {seen}.")
    return content


def read_attention(path: str) -> dict[str, Any]:
    """Attention by question id, of an object or of rows ``{"questionId", "attention"}``."""
    content = read(path)
    if isinstance(content, dict):
        return content
    try:
        rows = rows_by_id(content, "attention", "questionId", "attention")
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return {key: row["attention"] for key, row in rows.items()}


def read_captions(path: str) -> tuple[list[Any], list[Any]]:
    """The images (each with an id) and annotations of a file in COCO's caption format."""
    content = read(path)
    lists = [content.get(k) if isinstance(content, Mapping) else None for k in _COCO]
    images, annotations = lists
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise DataError(
            f"{path}: expected COCO captions (an object with `images` and `annotations`), saw "
            f"{describe(content)}."
        )
    known: set[str] = set()
    for n, image in enumerate(images, start=1):
        if not isinstance(image, Mapping) or image.get("id") is None:
            raise DataError(f"{path}: image {n} has no `id`.")
        known.add(str(image["id"]))
    for n, row in enumerate(annotations, start=1):
        if not isinstance(row, Mapping) or not {"image_id", "caption"} <= row.keys():
            raise DataError(f"{path}: annotation {n} needs `image_id` and `caption`.")
        if str(row["image_id"]) not in known:
            raise DataError(f"{path}: annotation {n}: no image has id {row['image_id']!r}.")
    return images, annotations


def read_aokvqa_predictions(path: str, *, multiple_choice: bool) -> Predictions:
    """A-OKVQA's leaderboard file, or plain answers.

    Both come as an object by question id or as rows with ``question_id``: either with
    ``direct_answer`` and/or ``multiple_choice``, or with a plain answer, which `multiple_choice`
    says is the chosen text. A part that is empty everywhere, as LAVIS writes it, was not predicted.
    """
    content = read(path)
    try:
        if isinstance(content, list):
            rows: Mapping[Any, Any] = rows_by_id(content, "result", "question_id")
        else:
            rows = _answers_object(content)
        found: Predictions = {"direct_answer": {}, "multiple_choice": {}}
        for key, row in rows.items():
            plain = row.get("answer") if isinstance(row, Mapping) else row
            parts = {"multiple_choice" if multiple_choice else "direct_answer": plain}
            if isinstance(row, Mapping) and row.keys() & found.keys():
                parts = {name: row[name] for name in found if name in row}
            for name, answer in parts.items():
                if not isinstance(answer, str):
                    raise ValueError(
                        f"question_id {key!r}: `{name}` must be a string, saw {answer!r}"
                    )
                found[name][key] = answer
    except ValueError as error:
        raise DataError(f"{path}: {error}.") from error
    given = {name: answers for name, answers in found.items() if any(answers.values())}
    if not given:
        raise DataError(f"{path}: all answers are empty.")
    if multiple_choice and "multiple_choice" not in given:
        raise DataError(f"{path}: holds no answers to multiple choice.")
    return given


def describe(content: Any) -> str:
    """What kind of file this seems to be, for a message."""
    if isinstance(content, Mapping) and content:
        fields = set(content)
        first: Any = next(iter(content.values()), None)
        kinds = _OBJECTS
        if isinstance(first, Mapping) and not any(need <= fields for need, _ in kinds):
            fields, kinds = set(first), _ENTRIES
    elif isinstance(content, list) and content and isinstance(content[0], Mapping):
        fields, kinds = set(content[0]), _ROWS
    else:
        kind = {list: "list", dict: "object", str: "text", type(None): "null"}.get(type(content))
        empty = "an empty " if isinstance(content, (list, dict)) and not content else "just a "
        return empty + (kind or "number")
    name = next((name for need, name in kinds if need <= fields), None)
    shown = ", ".join(sorted(map(str, fields))[:5])
    return name or f"{'a list of rows' if kinds is _ROWS else 'an object'} with {shown}"


Signs = tuple[tuple[set[str], str], ...]

_COCO = ("images", "annotations")
_OBJECTS: Signs = (
    ({"images", "annotations"}, "COCO captions"),
    ({"annotations"}, "VQA annotations"),
    ({"questions"}, "VQA questions"),
)
_ENTRIES: Signs = (
    ({"imageId", "question"}, "GQA questions"),
    ({"valid"}, "GQA choices"),
    ({"objects"}, "GQA scene graphs"),
    ({"direct_answer"}, "A-OKVQA results"),
    ({"multiple_choice"}, "A-OKVQA results"),
)
_ROWS: Signs = (
    ({"question_id", "answers"}, "VQA annotations"),
    ({"question_id", "direct_answers"}, "A-OKVQA questions"),
    ({"question_id", "choices"}, "A-OKVQA questions"),
    ({"question_id", "question"}, "a list of questions"),
    ({"question_id", "answer"}, "VQA results"),
    ({"questionId", "prediction"}, "GQA results"),
    ({"questionId", "attention"}, "GQA attention"),
    ({"image_id", "caption"}, "caption results"),
)


def _check_rows(path: str, what: str, rows: list[Any], kind: str, key: str) -> None:
    try:
        rows_by_id(rows, what, "question_id", key)
    except ValueError as error:
        seen = describe(rows)
        named = {name for _, name in _ROWS}
        other = f" The file seems to hold {seen}." if seen in named - {kind} else ""
        raise DataError(f"{path}: {error}.{other}") from error


def _answers_object(content: Any) -> Mapping[str, Any]:
    """`content` itself, when it can be answers by question id.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(content, Mapping) or not content or _COCO[1] in content:
        raise ValueError(
            f"expected answers by question id, or a list of results, saw {describe(content)}"
        )
    return content
