"""Questions from several files, joined with their answers, in a few arrays."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.packed import StringPacker, file_stamp, stored
from lavislite.datasets.question_files import FORMATS, QuestionFile
from lavislite.datasets.question_records import (
    FIELDS,
    Annotation,
    Choice,
    Located,
    Names,
    Question,
)
from lavislite.datasets.question_table import (
    PER_ANSWERED,
    PER_PICTURE,
    PER_QUESTION,
    QuestionTable,
)
from lavislite.datasets.records import existing

logger = get_logger(__name__)

__all__ = ["FIELDS", "FORMATS", "Question", "QuestionTable", "read_questions"]


def read_questions(
    files: Iterable[Path],
    *,
    columns: Mapping[str, str] | None = None,
    by_number: bool = False,
    formats: Collection[str] = tuple(FORMATS),
    reader: str = "the data set",
    details: bool = True,
) -> QuestionTable:
    """The questions of `files` in their order, joined with their answers by question id.

    Args:
        columns: our field (see `FIELDS`) -> its name in records of your own.
        by_number: the pictures of records without a file name get theirs from `image_names`.
        formats: keys of `FORMATS` that the files may hold.
        reader: whose rule that is, for messages.
        details: keep `Question.details`, which may be large.

    Raises:
        ConfigError: an unknown field in `columns`.
        DataError: a missing, empty or malformed file, one of another data set, or files that do not
            belong together; names file and record.
    """
    for name in columns or {}:
        if name not in FIELDS:
            raise ConfigError(
                f"columns.{name}: not one of our fields.{did_you_mean(name, FIELDS)} "
                f"Known: {', '.join(FIELDS)} (each followed by its name in your file)"
            )
    paths = [existing(Path(file)) for file in files]
    names = Names(columns or {})
    options = [names.columns, by_number, sorted(formats), details]

    def make() -> dict[str, np.ndarray]:
        found = _Collected(details)
        for path in paths:
            found.add(
                QuestionFile(path, names, by_number=by_number, formats=formats, reader=reader)
            )
        return found.arrays()

    return QuestionTable(stored(["questions", *map(file_stamp, paths), json.dumps(options)], make))


class _Collected:
    """Questions and answers of several files."""

    def __init__(self, details: bool) -> None:
        self.details = details
        self.columns = {n: StringPacker() for n in (*PER_QUESTION, *PER_PICTURE, *PER_ANSWERED)}
        self.choices = StringPacker()
        self.picture, self.own_answers = array("q"), array("q")
        self.only_numbers = True
        self.rows: dict[str, int] = {}  # question id -> row
        self.annotated: dict[str, int] = {}  # question id -> row of the answers
        self.pictures: dict[tuple[str, str, str], int] = {}
        self.located: dict[str, str] = {}
        self.files: list[tuple[int, QuestionFile]] = []  # the questions before, the file
        self.answer_files: list[QuestionFile] = []
        self.asking: list[QuestionFile] = []

    def add(self, file: QuestionFile) -> None:
        questions, annotations, repeated = len(self.rows), len(self.annotated), 0
        choices = StringPacker()
        self.files.append((questions, file))
        for piece in file:
            if isinstance(piece, Question):
                repeated += not self._asked(piece)
            elif isinstance(piece, Annotation):
                self._answered(piece)
            elif isinstance(piece, Located):
                self.located[piece.image_id] = piece.image
            elif isinstance(piece, Choice):
                choices.add(piece.answer)
        if len(choices):
            self.choices = choices
        if len(self.annotated) > annotations:
            self.answer_files.append(file)
        if len(self.rows) > questions:
            self.asking.append(file)
        if repeated:
            logger.info("%s: %d questions were in a file before it.", file.file, repeated)

    def _asked(self, question: Question) -> bool:
        """Add a question; False if an earlier file had it."""
        first, file = self.files[-1]
        row = self.rows.setdefault(str(question.question_id), len(self.rows))
        if row < len(self.columns["id"]):
            self._check_repeated(question, row, first, file)
            return False
        self.columns["id"].add(json.dumps(question.question_id))
        self.columns["text"].add(question.question)
        kept = question.details if self.details else {}
        self.columns["details"].add(json.dumps(kept, ensure_ascii=False) if kept else "")
        self.only_numbers = self.only_numbers and isinstance(question.question_id, int)
        self.own_answers.append(self._add_answers(question))
        key = question.image, question.image_id, question.subset
        picture = self.pictures.setdefault(key, len(self.pictures))
        if picture == len(self.columns["image"]):
            for name, value in zip(PER_PICTURE, key, strict=False):
                self.columns[name].add(value)
        self.picture.append(picture)
        return True

    def _check_repeated(self, question: Question, row: int, first: int, file: QuestionFile) -> None:
        where = f"{file.where}: question_id {question.question_id!r} was there before"
        if row >= first:
            raise DataError(f"{where}. Every question needs an id of its own.")
        if self.columns["text"][row] != question.question:
            raise DataError(
                f"{where}, for another question: '{self.columns['text'][row]}' in an earlier file, "
                f"'{question.question}' here. Read files that number their questions alike as two "
                "datasets."
            )

    def _answered(self, annotation: Annotation) -> None:
        if str(annotation.question_id) in self.annotated:
            where = self.files[-1][1].where
            raise DataError(
                f"{where}: question_id {annotation.question_id!r} was annotated before."
            )
        self.annotated[str(annotation.question_id)] = self._add_answers(annotation)

    def _add_answers(self, of: Question | Annotation) -> int:
        """The row of the answers and types; -1 when there are none."""
        if not (of.answers or of.question_type or of.answer_type):
            return -1
        self.columns["answers"].add(
            json.dumps(of.answers, ensure_ascii=False) if of.answers else ""
        )
        self.columns["question_type"].add(of.question_type)
        self.columns["answer_type"].add(of.answer_type)
        return len(self.columns["answers"]) - 1

    def arrays(self) -> dict[str, np.ndarray]:
        """What a `QuestionTable` is made of.

        Raises:
            DataError: no questions, questions without answers, or files that do not fit.
        """
        first = self.files[0][1].file if self.files else Path()
        if not self.rows:
            hint = " List the file of the questions as well." if self.annotated else ""
            raise DataError(f"{first}: no questions in it (nor in the split's other files).{hint}")
        self._check_subsets()
        answered = np.frombuffer(self.own_answers, np.int64).copy()
        for row, key in enumerate(self.rows):
            annotated = self.annotated.get(key, -1)
            if annotated >= 0:
                answered[row] = annotated
        complete = self._check_answered(answered, first)
        for _, image_id, _ in self.pictures:
            self.columns["located"].add(self.located.get(image_id, ""))
        arrays = {
            "picture": np.frombuffer(self.picture, np.int64),
            "answered": answered,
            "flags": np.asarray([self.only_numbers, complete]),
            **self.choices.arrays("choices"),
        }
        for name, column in self.columns.items():
            arrays.update(column.arrays(name))
        return arrays

    def _check_subsets(self) -> None:
        asked = {file.subset for file in self.asking if file.subset}
        for file in self.answer_files:
            if asked and file.subset and file.subset not in asked:
                raise DataError(
                    f"{file.file}: holds the answers to {file.subset}, the questions are those of "
                    f"{', '.join(sorted(asked))} ({self.asking[0].file})."
                )

    def _check_answered(self, answered: np.ndarray, first: Path) -> bool:
        """Whether all questions have answers; either all of them or none should."""
        lengths = np.diff(self.columns["answers"].arrays("answers")["answers.ends"])
        has = (answered >= 0) & np.append(lengths > 0, False)[answered]
        missing = np.flatnonzero(~has)
        if len(missing) and (has.any() or self.answer_files):
            where = "".join(f" in {file.file}" for file in self.answer_files[:1])
            raise DataError(
                f"{first}: {len(missing)} of {len(has)} questions have no answers{where}, the "
                f"first is question_id {self.columns['id'][int(missing[0])]}. Do the files belong "
                "together?"
            )
        unused = [key for key in self.annotated if key not in self.rows]
        if unused:
            logger.warning(
                "%s: %d of %d annotations belong to no question of the split, the first is "
                "question_id %s.",
                *(self.answer_files[0].file, len(unused), len(self.annotated), unused[0]),
            )
        return not len(missing)
