"""Questions about pictures: to train on one answer at a time, to be answered in evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lavislite.common.catalog import datasets
from lavislite.common.errors import DataError
from lavislite.datasets.base import (
    Dataset,
    DatasetBuilder,
    DatasetConfig,
    Processor,
    Sample,
    id_number,
)
from lavislite.datasets.caption import COCO_ADVICE
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.packed import PackedStrings
from lavislite.datasets.questions import Question, Questions, read_questions


@dataclass
class ImageVQAConfig(DatasetConfig):
    """Options of `image_vqa`.

    Attributes:
        annotations: split -> files; see `lavislite.datasets.questions`.
        columns: our field (image, question, answer, question_id, ...) -> its name in your records.
        image_name: file name of a picture that the file knows by its number only, made of
            ``{image_id}`` and ``{subset}`` (the file's `data_subtype`).
    """

    image_name: str | None = None
    text_processor: dict[str, Any] = field(
        default_factory=lambda: {
            "train": {"name": "blip_question"},
            "eval": {"name": "blip_question"},
        }
    )


class QuestionTable:
    """Questions packed so that workers share the memory; `picture` says which file each shows."""

    def __init__(self, questions: Iterable[Question]) -> None:
        kept = list(questions)
        number: dict[tuple[str, str], int] = {}
        for q in kept:
            number.setdefault((q.image, q.image_id), len(number))
        self.paths = PackedStrings(path for path, _ in number)
        self.image_ids = PackedStrings(image_id for _, image_id in number)
        self.picture = np.asarray([number[q.image, q.image_id] for q in kept], np.int64)
        self._ids = PackedStrings(json.dumps(q.question_id) for q in kept)
        self.texts = PackedStrings(q.question for q in kept)
        self._answers = PackedStrings(json.dumps(q.answers) for q in kept)
        self.question_types = PackedStrings(q.question_type for q in kept)
        self.answer_types = PackedStrings(q.answer_type for q in kept)
        self.only_numbers = all(isinstance(q.question_id, int) for q in kept)
        self.answered = all(q.answers for q in kept)

    def __len__(self) -> int:
        return len(self.picture)

    def question_id(self, k: int) -> int | str:
        return json.loads(self._ids[k])

    def answers(self, k: int) -> list[Any]:
        return json.loads(self._answers[k])


class VQADataset(Dataset):
    """Samples ``{"image": [3, S, S], "text_input": question, "question_id", "image_id", "index"}``.

    In training also ``answers`` (each different one), their ``weights`` (the share of annotators
    who gave it) and ``text_output``, one answer drawn by weight. `question_id` is a number when all
    are, else a string; `image_id` is a number equal for questions about the same picture.

    Attributes:
        answer_list: answers to choose from, or None.
    """

    evaluation = "vqa"

    def __init__(
        self,
        name: str,
        split: str,
        *,
        table: QuestionTable,
        files: ImageFiles,
        vis_processor: Processor,
        text_processor: Processor,
        train: bool,
        keep: Iterable[int] | None = None,
        answer_list: list[str] | None = None,
    ) -> None:
        super().__init__(name, split, files=files, vis_processor=vis_processor)
        self.table = table
        self.text_processor = text_processor
        self.train = train
        self.answer_list = answer_list
        everything = np.arange(len(table))
        self._questions = (
            everything if keep is None else everything[np.isin(table.picture, list(keep))]
        )
        self._image_ids = np.asarray([id_number(name, i) for i in table.image_ids], np.int64)

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        if image is None:
            return None
        k = int(self._questions[index])
        question_id = self.table.question_id(k)
        sample = {
            "image": image,
            "text_input": self.text_processor(self.table.texts[k]),
            "question_id": question_id if self.table.only_numbers else str(question_id),
            "image_id": int(self._image_ids[self.file_number(index)]),
            "index": int(index),
        }
        if not self.train:
            return sample
        answers, weights = weighted(self.table.answers(k))
        drawn = int(torch.multinomial(torch.tensor(weights), 1))
        return {**sample, "answers": answers, "weights": weights, "text_output": answers[drawn]}

    def file_number(self, index: int) -> int:
        return int(self.table.picture[self._questions[index]])

    def record_id(self, index: int) -> str:
        question_id = self.table.question_id(int(self._questions[index]))
        path = self.files.path(self.file_number(index))
        return f"{self.name}/{self.split} question {question_id} ({path})"

    def annotation(self, index: int) -> dict[str, Any]:
        """What is known about question `index`, with the VQA server's keys.

        ``question_id, image_id`` (text)``, question, answers`` (of all annotators; empty in a test
        split)``, question_type, answer_type`` (empty when not known) and ``image``, the file.
        """
        k = int(self._questions[index])
        return {
            "question_id": self.table.question_id(k),
            "image_id": self.table.image_ids[self.file_number(index)],
            "image": str(self.files.path(self.file_number(index))),
            "question": self.table.texts[k],
            "answers": self.table.answers(k),
            "question_type": self.table.question_types[k],
            "answer_type": self.table.answer_types[k],
        }

    def captions(self) -> Iterable[str]:
        """Every question and each of its different answers."""
        for k in self._questions.tolist():
            yield self.text_processor(self.table.texts[k])
            yield from weighted(self.table.answers(k))[0]


def weighted(answers: list[Any]) -> tuple[list[str], list[float]]:
    """The different answers, first come first, and the share of annotators who gave each."""
    texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(texts)
    return list(counts), [count / len(texts) for count in counts.values()]


class ImageVQABuilder(DatasetBuilder):
    """Your own pictures with questions, in any of the shapes of `datasets.questions`."""

    Config: ClassVar[type[DatasetConfig]] = ImageVQAConfig
    cfg: ImageVQAConfig

    def build(self, split: str, *, train: bool) -> VQADataset:
        """The questions of `split`; in evaluation those whose pictures can be read."""
        vis, text = self.vis_processor(train), self.text_processor(train)
        found, folder = self.questions(split)
        table = QuestionTable(found.questions)
        if train and not table.answered:
            raise DataError(f"{self.name}/{split} has no answers: it cannot be trained on.")
        files = self.files(split, table.paths, folder)
        return VQADataset(
            self.name,
            split,
            table=table,
            files=files,
            vis_processor=vis,
            text_processor=text,
            train=train,
            keep=None if train else files.readable(),
            answer_list=found.answer_list,
        )

    def questions(self, split: str) -> tuple[Questions, Path]:
        """The questions of `split` and the folder of their pictures."""
        files = [source.locate() for source in self._sources(split)]
        found = read_questions(files, columns=self.cfg.columns, image_name=self.cfg.image_name)
        folder = self._folder(split)
        return found, files[0].parent if folder is None else folder


# Registered here rather than with @ on the class: CocoVQA only differs in its packaged defaults.
datasets.register("image_vqa")(ImageVQABuilder)

VQA_ADVICE = f"{COCO_ADVICE} The test splits need test2015.zip as well."


@datasets.register("coco_vqa")
class CocoVQABuilder(ImageVQABuilder):
    """VQAv2: the official files, or those that LAVIS prepared."""

    advice = VQA_ADVICE
