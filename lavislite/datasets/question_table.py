"""Questions in a few arrays that processes share, and the files of the pictures they are about."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.packed import PackedStrings
from lavislite.datasets.question_records import Question

# The columns of strings, each packed on its own.
PER_QUESTION = ("id", "text", "details")
PER_PICTURE = ("image", "image_id", "subset", "located")
PER_ANSWERED = ("answers", "question_type", "answer_type")


class QuestionTable:
    """Questions in the order of their files, packed in arrays that processes share.

    Attributes:
        picture: [n_questions] the number of the picture that each is about.
        image_ids: by picture.
        texts: by question.
        only_numbers: every question id is a number.
        answered: every question has answers.
        answer_list: answers to choose from, or None.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        names = (*PER_QUESTION, *PER_PICTURE, *PER_ANSWERED)
        self._packed = {name: PackedStrings.from_arrays(arrays, name) for name in names}
        self.picture = arrays["picture"]
        self._answered = arrays["answered"]  # [n_questions] row of the answers; -1: none
        self.image_ids = self._packed["image_id"]
        self.texts = self._packed["text"]
        self.only_numbers, self.answered = map(bool, arrays["flags"])
        choices = PackedStrings.from_arrays(arrays, "choices")
        self.answer_list = list(choices) if len(choices) else None

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, k: int) -> Question:
        picture = int(self.picture[k])
        details = self._packed["details"][k]
        return Question(
            question_id=self.question_id(k),
            question=self.texts[k],
            image=self._packed["image"][picture],
            image_id=self.image_ids[picture],
            answers=self.answers(k),
            question_type=self._of_answered("question_type", k),
            answer_type=self._of_answered("answer_type", k),
            details=json.loads(details) if details else {},
            subset=self._packed["subset"][picture],
        )

    def question_id(self, k: int) -> int | str:
        return json.loads(self._packed["id"][k])

    def answers(self, k: int) -> list[Any]:
        return json.loads(self._of_answered("answers", k) or "[]")

    def image_names(self, patterns: Collection[str], folder: Path) -> PackedStrings:
        """The file of each picture: as the annotations have it, or made from its number.

        Args:
            patterns: such as ``"{subset}/COCO_{subset}_{image_id:012d}.jpg"``; of several the first
                whose file is in `folder`, or just the first if there is none.

        Raises:
            ConfigError: a pattern with something else in braces.
            DataError: an id that does not fit.
        """
        columns = (self._packed[name] for name in PER_PICTURE)
        return PackedStrings(
            image or _first_of(_candidates(located, patterns, image_id, subset), folder, image_id)
            for image, image_id, subset, located in zip(*columns, strict=True)
        )

    def _of_answered(self, name: str, k: int) -> str:
        row = int(self._answered[k])
        return self._packed[name][row] if row >= 0 else ""


def _candidates(
    located: str, patterns: Collection[str], image_id: str, subset: str
) -> Iterator[str]:
    if located:
        yield located
    # The questions for the development server show pictures of the test folder.
    subset = subset.replace("test-dev", "test")
    for pattern in patterns:
        if subset or "{subset" not in pattern:
            yield _filled(pattern, image_id, subset)


def _first_of(names: Iterator[str], folder: Path, image_id: str) -> str:
    candidates = list(names)
    if not candidates:
        raise DataError(
            f"image_id {image_id!r}: the annotations do not say which file that is. Set "
            "`image_name:` to make it from the image_id, without {subset}."
        )
    if len(candidates) == 1:
        return candidates[0]
    return next((name for name in candidates if (folder / name).exists()), candidates[0])


def _filled(pattern: str, image_id: str, subset: str) -> str:
    number = image_id.isdecimal() and str(int(image_id)) == image_id
    try:
        return pattern.format(image_id=int(image_id) if number else image_id, subset=subset)
    except (KeyError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"image_name: {pattern!r} may use {{image_id}} and {{subset}}, not {error}."
        ) from error
    except ValueError as error:
        raise DataError(
            f"image_id {image_id!r} does not fit image_name {pattern!r}: {error}."
        ) from error
