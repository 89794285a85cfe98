"""One record of a file of questions, of any data set, to what it says in our words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lavislite.common.errors import DataError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.records import short

FIELDS = (
    *("image", "question", "answer", "question_id", "image_id", "question_type", "answer_type"),
)
# Other names of our fields in files of LAVIS, A-OKVQA and GQA.
_ALSO = {
    "answer": ("answer", "answers", "direct_answers"),
    "question_id": ("question_id", "questionId"),
    "image_id": ("image_id", "imageId"),
}
# What only some data sets know about a question: A-OKVQA, then GQA.
_DETAILS = (
    *("choices", "correct_choice_idx", "difficult_direct_answer", "rationales"),
    *("types", "groups", "entailed", "equivalent", "semantic", "isBalanced", "annotations"),
    "fullAnswer",
)
# What a record without a question is, by some of its keys.
_STRANGERS = (
    ({"objects", "width"}, "scene graphs (GQA's?)"),
    ({"valid", "plausible"}, "GQA's choices of answers"),
    ({"prediction", "questionId"}, "predictions for GQA"),
    ({"multiple_choice", "direct_answer"}, "predictions for A-OKVQA"),
    ({"question_id", "answer"}, "answers without questions (a result file?)"),
    ({"regions"}, "Visual Genome's regions"),
    ({"sentences", "filename"}, "captions in Karpathy's splits"),
    ({"bbox"}, "boxes of objects (COCO's?)"),
    ({"caption"}, "captions"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture.

    Attributes:
        image: file name; "" when the record knows the picture by `image_id` only.
        answers: of all annotators, repeated as often as they were given; empty if not known. Texts,
            or the file's own objects where those are not all different (accuracy depends on it).
        details: what only some data sets know, under the names of the official file.
        subset: the file's `data_subtype` or the record's `split`, if any.
    """

    question_id: int | str
    question: str
    image: str
    image_id: str
    answers: list[Any]
    question_type: str = ""
    answer_type: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    subset: str = ""


class Annotation(NamedTuple):
    """The answers to a question that stands in another file."""

    question_id: int | str
    answers: list[Any]
    question_type: str
    answer_type: str


class Located(NamedTuple):
    """The file name of a picture, of which nothing else is said."""

    image_id: str
    image: str


class Choice(NamedTuple):
    """One of the answers to choose from."""

    answer: str


Piece = Question | Annotation | Located | Choice


class Names:
    """Where a record keeps our fields.

    Args:
        columns: our field -> its name, for records of your own.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = dict(columns)
        self.places = {
            field: (columns[field],) if field in columns else _ALSO.get(field, (field,))
            for field in FIELDS
        }

    def of(self, record: Mapping[str, Any], field: str) -> Any:
        """The value of `field`; None when there is none."""
        for place in self.places[field]:
            if place in record:
                return record[place]
        return None


def stranger(record: Mapping[str, Any]) -> str | None:
    """What `record` is, if it is known to have nothing to do with questions."""
    return next((what for keys, what in _STRANGERS if keys <= record.keys()), None)


def question(
    where: str,
    record: Mapping[str, Any],
    names: Names,
    *,
    default_id: int | str,
    subset: str = "",
    by_number: bool = False,
) -> Question:
    """The question that `record` asks.

    Args:
        where: file and record, for messages.
        default_id: its id if it has none.
        by_number: the picture may be known by its number only.

    Raises:
        DataError: no question, no picture, or a value of the wrong kind.
    """
    text = names.of(record, "question")
    place = names.places["question"][0]
    if not isinstance(text, str) or not text.strip():
        what = None if place in record else stranger(record)
        if what is not None:
            raise DataError(f"{where}: holds {what}, not questions.")
        near = "" if place in record else did_you_mean(place, record)
        raise DataError(f"{where}: {place}: expected some text, saw {short(text)}.{near}")
    image, image_id = names.of(record, "image"), names.of(record, "image_id")
    if image is None and image_id is not None and by_number:
        image = ""
    elif not isinstance(image, str) or not image.strip():
        place = names.places["image"][0]
        hint = "" if place in record else did_you_mean(place, record)
        if image_id is not None:
            hint = " Set `image_name:` to make it from the image_id."
        raise DataError(f"{where}: {place}: expected a file name, saw {short(image)}.{hint}")
    question_id = names.of(record, "question_id")
    types = record.get("types")
    kind = names.of(record, "question_type")
    if kind is None and isinstance(types, Mapping):  # GQA's
        kind = types.get("structural")
    return Question(
        question_id=identifier(where, default_id if question_id is None else question_id),
        question=text,
        image=image,
        image_id=image if image_id is None else str(identifier(where, image_id, "image_id")),
        answers=answers(where, names.of(record, "answer")),
        question_type=str(kind or ""),
        answer_type=str(names.of(record, "answer_type") or ""),
        details=_details(where, record),
        subset=subset or str(record.get("split") or ""),
    )


def _details(where: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What only some data sets know; A-OKVQA's choices are checked."""
    found = {key: record[key] for key in _DETAILS if key in record}
    if not {"correct_choice_idx", "difficult_direct_answer"} & found.keys():
        return found
    choices, right = found.get("choices", []), found.get("correct_choice_idx")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: choices: expected a list of texts, saw {short(choices)}.")
    if right is not None and (type(right) is not int or not 0 <= right < len(choices)):
        raise DataError(
            f"{where}: correct_choice_idx: expected the place of one of {len(choices)} choices, "
            f"from 0, saw {short(right)}."
        )
    difficult = found.get("difficult_direct_answer", False)
    if not isinstance(difficult, bool):
        raise DataError(
            f"{where}: difficult_direct_answer: expected true or false, saw {short(difficult)}."
        )
    return found


def annotation(where: str, record: Mapping[str, Any]) -> Annotation:
    """The VQA server's answers to a question.

    Raises:
        DataError: it is something else, or lacks something.
    """
    if "question_id" not in record or "answers" not in record:
        what = stranger(record)
        if what is not None:
            raise DataError(f"{where}: holds {what}, not answers to questions.")
        missing = "question_id" if "question_id" not in record else "answers"
        keys = ", ".join(map(str, record))
        raise DataError(f"{where}: no `{missing}` among its keys {keys}.")
    return Annotation(
        identifier(where, record["question_id"]),
        answers(where, record["answers"]),
        str(record.get("question_type") or ""),
        str(record.get("answer_type") or ""),
    )


def visual_genome(where: str, record: Mapping[str, Any]) -> Iterator[Question]:
    """The questions about one picture of Visual Genome, with answers as LAVIS prepared them.

    Raises:
        DataError: one of them lacks something.
    """
    asked = record["qas"]
    if not isinstance(asked, list):
        raise DataError(f"{where}: qas: expected a list of questions, saw {short(asked)}.")
    names = Names({"question_id": "qa_id"})
    for n, entry in enumerate(asked, start=1):
        here = f"{where}, question {n}"
        if not isinstance(entry, Mapping) or "qa_id" not in entry:
            raise DataError(f"{here}: expected an object with `qa_id`, saw {short(entry)}.")
        image_id = entry.get("image_id", record.get("image_id", record.get("id")))
        answer = entry.get("answer")
        if isinstance(answer, str):  # "Two." there, "two" in LAVIS's file
            answer = answer.strip().removesuffix(".").lower()
        found = {**entry, "image_id": image_id, "answer": answer}
        yield question(here, found, names, default_id="", by_number=True)


def located(where: str, record: Mapping[str, Any]) -> Located:
    """Where Visual Genome keeps a picture: the last two parts of its URL, as in the archives.

    Raises:
        DataError: no id, or no URL.
    """
    image_id = identifier(where, record.get("image_id", record.get("id")), "image_id")
    url = record["url"]
    if not isinstance(url, str):
        raise DataError(f"{where}: url: expected a text, saw {short(url)}.")
    return Located(str(image_id), str(PurePosixPath(*PurePosixPath(urlsplit(url).path).parts[-2:])))


def identifier(where: str, value: Any, name: str = "question_id") -> int | str:
    """`value`, which must be a number or a text.

    Raises:
        DataError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise DataError(f"{where}: {name}: expected a number or a string, saw {short(value)}.")
    return value


def answers(where: str, given: Any) -> list[Any]:
    """The annotators' answers, as texts if that says as much as the objects of the file.

    None, and nothing but empty texts, are no answers: [].

    Raises:
        DataError: an empty list, or something that is neither a text nor has one as `answer`.
    """
    if given is None:
        return []
    entries = [given] if isinstance(given, (str, dict)) else given
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{where}: answer: expected an answer or a list of them, saw {short(given)}."
        )
    texts: list[str] = []
    for entry in entries:
        text = entry.get("answer") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise DataError(f"{where}: answer: expected a text, saw {short(text)}.")
        texts.append(text)
    if not any(text.strip() for text in texts):
        return []
    if all(isinstance(entry, str) for entry in entries) or _told_apart(entries):
        return texts
    return [entry if isinstance(entry, dict) else {"answer": entry} for entry in entries]


def _told_apart(entries: list[Any]) -> bool:
    objects = [entry for entry in entries if isinstance(entry, dict)]
    numbers = {str(entry.get("answer_id")) for entry in objects}
    if len(numbers) == len(entries):
        return True  # the usual case, quickly
    return len({json.dumps(entry, sort_keys=True) for entry in objects}) == len(entries)


def cell(fields: Mapping[str, str], names: Names, where: str) -> dict[str, Any]:
    """A row of a table with numbers as ids and lists of answers, and without empty fields.

    Raises:
        DataError: a field with answers begins like a list but is none.
    """
    row: dict[str, Any] = {key: value for key, value in fields.items() if value != ""}
    for place in (*names.places["question_id"], *names.places["image_id"]):
        if place in row and str(row[place]).isdecimal() and str(int(row[place])) == row[place]:
            row[place] = int(row[place])
    for place in names.places["answer"]:
        if place in row and row[place].strip().startswith("["):
            try:
                row[place] = json.loads(row[place])
            except ValueError as error:
                raise DataError(
                    f"{where}: {place}: expected one answer, or a JSON list such as "
                    f'["a cat", "cat"], saw {short(row[place])}.'
                ) from error
    return row
