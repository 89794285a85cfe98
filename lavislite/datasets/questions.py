"""Files of visual questions, of many shapes, to one kind of record.

The files of a split may be any mix of

- records: a JSON list, or one object per line, each with a question, a picture and answers (one
  text, or a list of the annotators' answers), as LAVIS prepares them or as you write them;
- the VQA server's questions ``{"questions": [{"question_id", "image_id", "question"}]}`` and
  annotations ``{"annotations": [{"question_id", "answers", "answer_type", "question_type"}]}``,
  which belong together by `question_id`;
- a list of texts: the answers to choose from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.io import read_json
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.annotations import existing

logger = get_logger(__name__)

FIELDS = (
    *("image", "question", "answer", "question_id", "image_id", "question_type", "answer_type"),
)
_ANSWER_NAMES = ("answer", "answers")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture.

    Attributes:
        image: file name.
        answers: of all annotators, repeated as often as they were given; empty if not known. Texts,
            or the file's own objects where those are not all different (accuracy depends on it).
    """

    question_id: int | str
    question: str
    image: str
    image_id: str
    answers: list[Any]
    question_type: str
    answer_type: str


@dataclass(frozen=True)
class Questions:
    """A split's questions, and the answers to choose from if a file lists them."""

    questions: list[Question]
    answer_list: list[str] | None


def read_questions(
    files: Iterable[Path],
    *,
    columns: Mapping[str, str] | None = None,
    image_name: str | None = None,
) -> Questions:
    """The questions of `files` in their order, joined with their answers.

    Args:
        columns: our field (see `FIELDS`) -> its name in records of your own.
        image_name: file name of a picture that is known by its number only, such as
            ``"{subset}/COCO_{subset}_{image_id:012d}.jpg"``; `subset` is the file's `data_subtype`.

    Raises:
        ConfigError: an unknown field in `columns`, or an `image_name` that cannot be filled in.
        DataError: a missing, empty or malformed file, or questions and answers that do not belong
            together; names file and record.
    """
    reader = _Reader(_names(columns or {}), image_name)
    read = [reader.add(file) for file in map(Path, files)]
    return reader.finish(read[0] if read else Path())


class _Reader:
    """Collects questions by id over several files."""

    def __init__(self, names: Mapping[str, str], image_name: str | None) -> None:
        self.names, self.image_name = names, image_name
        self.found: dict[int | str, Question] = {}
        self.annotations: dict[int | str, Mapping[str, Any]] = {}
        self.annotation_file: Path | None = None
        self.answer_list: list[str] | None = None

    def add(self, path: Path) -> Path:
        file = existing(path)
        content = _content(file)
        if isinstance(content, list) and content and all(isinstance(x, str) for x in content):
            self.answer_list = content
            return file
        known = False
        if isinstance(content, dict) and isinstance(content.get("questions"), list):
            # The questions for the development server show pictures of the test folder.
            subset = str(content.get("data_subtype", "")).replace("test-dev", "test")
            self._records(file, "question", content["questions"], subset)
            known = True
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            self._annotations(file, content["annotations"])
            known = True
        if isinstance(content, list):
            self._records(file, "record", content, "")
            known = True
        if not known:
            keys = f" with the keys {', '.join(content)}" if isinstance(content, dict) else ""
            raise DataError(
                f"{file}: expected a list of records, or an object with `questions` or "
                f"`annotations`, saw a {type(content).__name__}{keys}."
            )
        return file

    def _records(self, file: Path, what: str, records: list[Any], subset: str) -> None:
        seen: set[int | str] = set()
        for n, record in enumerate(records, start=1):
            where = f"{file}, {what} {n}"
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected an object, saw {record!r}.")
            question = self._question(where, record, subset, default_id=f"{file.stem}:{n}")
            if question.question_id in seen:
                raise DataError(f"{where}: question_id {question.question_id!r} was there before.")
            seen.add(question.question_id)
            self.found.setdefault(question.question_id, question)
        if not records:
            raise DataError(f"{file}: holds no questions.")

    def _question(
        self, where: str, record: Mapping[str, Any], subset: str, default_id: str
    ) -> Question:
        names = self.names
        text = record.get(names["question"])
        if not isinstance(text, str) or not text.strip():
            near = "" if names["question"] in record else did_you_mean(names["question"], record)
            raise DataError(
                f"{where}: {names['question']}: expected some text, saw {text!r}.{near}"
            )
        image = record.get(names["image"])
        image_id = record.get(names["image_id"])
        if image is None and image_id is not None and self.image_name is not None:
            image = _filled(self.image_name, where, image_id, subset)
        if not isinstance(image, str) or not image.strip():
            hint = "" if image_id is None else " Set `image_name:` to make it from the image_id."
            raise DataError(
                f"{where}: {names['image']}: expected a file name, saw {image!r}.{hint}"
            )
        given = next((record[k] for k in (names["answer"], *_ANSWER_NAMES) if k in record), None)
        return Question(
            question_id=_identifier(where, record.get(names["question_id"], default_id)),
            question=text,
            image=image,
            image_id=str(image if image_id is None else image_id),
            answers=[] if given is None else _answers(where, given),
            question_type=str(record.get(names["question_type"]) or ""),
            answer_type=str(record.get(names["answer_type"]) or ""),
        )

    def _annotations(self, file: Path, annotations: list[Any]) -> None:
        for n, annotation in enumerate(annotations, start=1):
            where = f"{file}, annotation {n}"
            if not isinstance(annotation, dict) or "question_id" not in annotation:
                raise DataError(f"{where}: expected an object with `question_id`.")
            if "answers" not in annotation:
                raise DataError(f"{where}: no `answers` among its keys {', '.join(annotation)}.")
            question_id = _identifier(where, annotation["question_id"])
            answers = _answers(where, annotation["answers"])
            self.annotations[question_id] = {**annotation, "answers": answers}
        self.annotation_file = file

    def finish(self, first: Path) -> Questions:
        if not self.found:
            raise DataError(f"{first}: no questions in it (nor in the split's other files).")
        questions = [self._joined(question) for question in self.found.values()]
        missing = [question for question in questions if not question.answers]
        if missing and (len(missing) < len(questions) or self.annotation_file is not None):
            where = f" in {self.annotation_file}" if self.annotation_file is not None else ""
            raise DataError(
                f"{first}: {len(missing)} of {len(questions)} questions have no answers{where}, "
                f"the first is question_id {missing[0].question_id!r}. Do the files belong "
                "together?"
            )
        unused = len(self.annotations.keys() - self.found.keys())
        if unused:
            logger.info("%s: %d annotations belong to no question.", self.annotation_file, unused)
        return Questions(questions, self.answer_list)

    def _joined(self, question: Question) -> Question:
        annotation = self.annotations.get(question.question_id, {})
        return Question(
            question.question_id,
            question.question,
            question.image,
            question.image_id,
            annotation.get("answers") or question.answers,
            str(annotation.get("question_type") or question.question_type),
            str(annotation.get("answer_type") or question.answer_type),
        )


def _content(file: Path) -> Any:
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return read_json(file)
    records = []
    with file.open(encoding="utf-8-sig") as lines:
        for n, line in enumerate(lines, start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise DataError(f"{file}, line {n}: not valid JSON: {error}") from error
    return records


def _identifier(where: str, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise DataError(f"{where}: question_id: expected a number or a string, saw {value!r}.")
    return value


def _answers(where: str, given: Any) -> list[Any]:
    """The annotators' answers, as texts if that says as much as the objects of the file."""
    entries = [given] if isinstance(given, (str, dict)) else given
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where}: expected an answer or a list of them, saw {given!r}.")
    texts = [entry.get("answer") if isinstance(entry, dict) else entry for entry in entries]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: answer: expected a text, saw {text!r}.")
    told_apart = {json.dumps(e, sort_keys=True) for e in entries if isinstance(e, dict)}
    as_texts = len(told_apart) in (0, len(entries))
    return texts if as_texts else [e if isinstance(e, dict) else {"answer": e} for e in entries]


def _filled(pattern: str, where: str, image_id: Any, subset: str) -> str:
    try:
        return pattern.format(image_id=image_id, subset=subset)
    except (KeyError, IndexError) as error:
        raise ConfigError(
            f"image_name: {pattern!r} may use {{image_id}} and {{subset}}, not {error}."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{where}: image_id {image_id!r} does not fit image_name {pattern!r}: {error}."
        ) from error


def _names(columns: Mapping[str, str]) -> dict[str, str]:
    for field in columns:
        if field not in FIELDS:
            raise ConfigError(
                f"columns.{field}: not one of our fields.{did_you_mean(field, FIELDS)} "
                f"Known: {', '.join(FIELDS)} (each followed by its name in your file)"
            )
    return {field: columns.get(field, field) for field in FIELDS}
