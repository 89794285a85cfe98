"""Questions about pictures: to train on one answer at a time, to be answered in evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.base import (
    Dataset,
    DatasetBuilder,
    DatasetConfig,
    Processor,
    fetched_by,
)
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.question_table import QuestionTable
from lavislite.datasets.questions import FORMATS, read_questions
from lavislite.datasets.samples import Sample, id_number


@dataclass
class ImageVQAConfig(DatasetConfig):
    """Options of `image_vqa`.

    Attributes:
        annotations: split -> files; see `lavislite.datasets.questions`.
        columns: our field (image, question, answer, question_id, ...) -> its name in your records.
        image_name: file name of a picture that the file knows by its number only, made of
            ``{image_id}`` and ``{subset}`` (the file's `data_subtype` or the record's `split`); or
            several, of which the first that exists is taken.
    """

    image_name: Any = None
    text_processor: dict[str, Any] = field(
        default_factory=lambda: {
            "train": {"name": "blip_question"},
            "eval": {"name": "blip_question"},
        }
    )


class VQADataset(Dataset):
    """Samples ``{"image": [3, S, S], "text_input": question, "question_id", "image_id", "index"}``.

    In training also ``answers`` (each different one that is not empty), their ``weights`` (the
    share of annotators who gave it) and ``text_output``, one answer drawn by weight. `question_id`
    is a number when all are, else a string; `image_id` is a number equal for questions about the
    same picture.

    Args:
        evaluation: how answers are scored: "vqa", "gqa", "ok_vqa" or "aok_vqa".

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
        evaluation: str = "vqa",
    ) -> None:
        super().__init__(name, split, files=files, vis_processor=vis_processor)
        self.table = table
        self.text_processor = text_processor
        self.train = train
        self.evaluation = evaluation
        self.answer_list = table.answer_list
        # None: all of them, which needs no list in every worker.
        self._rows = None if keep is None else np.flatnonzero(np.isin(table.picture, list(keep)))
        self._image_ids = np.asarray([id_number(name, i) for i in table.image_ids], np.int64)

    def __len__(self) -> int:
        return len(self.table) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        return None if image is None else {"image": image, **self.question(index)}

    def question(self, index: int) -> Sample:
        """Sample `index` without its picture."""
        k = self._row(index)
        question_id = self.table.question_id(k)
        sample = {
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
        return int(self.table.picture[self._row(index)])

    def by_picture(self) -> list[list[int]]:
        """The questions of each picture, in their order; pictures with long questions come first.

        So batches of neighbours share pictures, and hold texts of about one length.
        """
        rows = slice(None) if self._rows is None else self._rows
        picture, lengths = self.table.picture[rows], self.table.texts.lengths()[rows]
        if not len(picture):
            return []
        longest = np.zeros(int(picture.max()) + 1, np.int64)
        np.maximum.at(longest, picture, lengths)
        order = np.lexsort((picture, -longest[picture]))
        starts = np.flatnonzero(np.diff(picture[order])) + 1
        return [group.tolist() for group in np.split(order, starts)]

    def record_id(self, index: int) -> str:
        question_id = self.table.question_id(self._row(index))
        path = self.files.path(self.file_number(index))
        return f"{self.name}/{self.split} question {question_id} ({path})"

    def annotation(self, index: int) -> dict[str, Any]:
        """What is known about question `index`, with the VQA server's keys.

        ``question_id, image_id`` (text)``, question, answers`` (of all annotators; empty in a test
        split)``, question_type, answer_type`` (empty when not known)``, image``, the file, and
        ``details``, what only A-OKVQA and GQA know, under their names (not kept in training).
        """
        question = self.table[self._row(index)]
        return {
            "question_id": question.question_id,
            "image_id": question.image_id,
            "image": str(self.files.path(self.file_number(index))),
            "question": question.question,
            "answers": question.answers,
            "question_type": question.question_type,
            "answer_type": question.answer_type,
            "details": question.details,
        }

    def captions(self) -> Iterable[str]:
        """Every question and each of its different answers."""
        for k in map(self._row, range(len(self))):
            yield self.text_processor(self.table.texts[k])
            yield from weighted(self.table.answers(k))[0]

    def _row(self, index: int) -> int:
        """Where question `index` is in the table."""
        return int(index) if self._rows is None else int(self._rows[index])


def weighted(answers: list[Any]) -> tuple[list[str], list[float]]:
    """The different answers, first come first, and the share of annotators who gave each.

    An annotator with an empty answer gave none.
    """
    texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(text for text in texts if text.strip())
    return list(counts), [count / counts.total() for count in counts.values()]


class ImageVQABuilder(DatasetBuilder):
    """Your own pictures with questions, in any of the shapes of `datasets.questions`."""

    Config: ClassVar[type[DatasetConfig]] = ImageVQAConfig
    cfg: ImageVQAConfig
    evaluation: ClassVar[str] = "vqa"
    formats: ClassVar[tuple[str, ...]] = tuple(FORMATS)  # what its files may hold

    def build(self, split: str, *, train: bool) -> VQADataset:
        """The questions of `split`; in evaluation those whose pictures can be read."""
        vis, text = self.vis_processor(train), self.text_processor(train)
        patterns = self._patterns()
        paths = [source.locate() for source in self._sources(split)]
        table = read_questions(
            paths,
            columns=self.cfg.columns,
            by_number=bool(patterns),
            formats=self.formats,
            reader=self.name,
            details=not train,
        )
        if train and not table.answered:
            raise DataError(f"{self.name}/{split} has no answers: it cannot be trained on.")
        folder = self._folder(split) or paths[0].parent
        files = self.files(split, table.image_names(patterns, folder), folder)
        return VQADataset(
            self.name,
            split,
            table=table,
            files=files,
            vis_processor=vis,
            text_processor=text,
            train=train,
            keep=None if train else files.readable(),
            evaluation=self.evaluation,
        )

    def _patterns(self) -> list[str]:
        given = self.cfg.image_name
        patterns = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise ConfigError(
                f"datasets.{self.name}.image_name: expected a file name such as "
                f"'{{image_id}}.jpg', or a list of them, saw {given!r}"
            )
        return patterns


# Registered here rather than with @ on the class: the others differ in their files and defaults.
datasets.register("image_vqa")(ImageVQABuilder)


@datasets.register("coco_vqa")
class CocoVQABuilder(ImageVQABuilder):
    """VQAv2: the official files, or those that LAVIS prepared."""

    advice = fetched_by("coco_vqa")
    formats = ("coco_vqa", "image_vqa")


@datasets.register("ok_vqa")
class OKVQABuilder(ImageVQABuilder):
    """OK-VQA, whose files have VQAv2's format: the official ones, or those that LAVIS prepared."""

    advice = fetched_by("ok_vqa")
    evaluation = "ok_vqa"
    formats = ("coco_vqa", "image_vqa")


@datasets.register("aok_vqa")
class AOKVQABuilder(ImageVQABuilder):
    """A-OKVQA: the official files, or those that LAVIS prepared, which name the pictures."""

    advice = f"{fetched_by('aok_vqa')} The pictures of COCO 2014 and 2015 will do."
    evaluation = "aok_vqa"
    formats = ("aok_vqa",)


@datasets.register("gqa")
class GQABuilder(ImageVQABuilder):
    """GQA: the official files, or those that LAVIS prepared."""

    advice = fetched_by("gqa")
    evaluation = "gqa"
    formats = ("gqa", "image_vqa")


@datasets.register("vg_vqa")
class VGVQABuilder(ImageVQABuilder):
    """Visual Genome's questions, to train on: the official files, or LAVIS's."""

    advice = f"{fetched_by('vg_vqa')} LAVIS's file wants them all in one folder `image`."
    formats = ("vg_vqa", "image_vqa")
