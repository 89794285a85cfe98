"""Documents about scenes that no picture shows: what the playground's language models read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.base import Dataset, DatasetBuilder, DatasetConfig, Sample
from lavislite.datasets.playground.documents import Document, Share, document, facts
from lavislite.datasets.playground.scenes import SPLITS, sample_split

OTHER_WORLD = 101  # added to the seed: not the scenes of the pictures


@dataclass
class PlaygroundTextConfig(DatasetConfig):
    """How many documents; `annotations` and `images` have no meaning here.

    Attributes:
        questions_per_document: of VQA's sort; `structured_per_document`, `facts_per_document`: of
            GQA's and OK-VQA's.
        fact_documents: documents that tell facts, beside each training document about a scene.
    """

    seed: int = 0
    num_train: int = 16_000
    num_val: int = 200
    num_test: int = 300
    questions_per_document: int = 5
    structured_per_document: int = 2
    facts_per_document: int = 1
    fact_documents: float = 1 / 16


class TextDataset(Dataset):
    """Samples ``{"context", "caption", "questions", "answers", "kinds", "index"}``."""

    evaluation = "text_questions"

    def __init__(self, name: str, split: str, documents: Sequence[Document]) -> None:
        self.name, self.split = name, split
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Sample:
        found = self._documents[index]
        return {
            "context": found.context,
            "caption": found.caption,
            "questions": [question.text for question in found.questions],
            "answers": [question.answer for question in found.questions],
            "kinds": [question.kind for question in found.questions],
            "index": index,
        }

    @property
    def bad_records(self) -> int:
        return 0

    def record_id(self, index: int) -> str:
        return f"{self.name}/{self.split} document {index}"

    def captions(self) -> Iterable[str]:
        """All texts, for the vocabulary."""
        for found in self._documents:
            yield found.context
            yield found.caption
            for question in found.questions:
                yield f"Question: {question.text} Answer: {question.answer}"


@datasets.register("playground_text")
class PlaygroundTextBuilder(DatasetBuilder):
    """Descriptions, questions and answers, made in memory in a few seconds."""

    Config: ClassVar[type[DatasetConfig]] = PlaygroundTextConfig
    cfg: Any

    def splits(self) -> list[str]:
        return list(SPLITS)

    def prepare(self) -> None:
        """Nothing is kept on disk."""

    def build(self, split: str, *, train: bool) -> TextDataset:  # noqa: ARG002
        """The documents of `split`; their scenes belong to the same split as in the pictures.

        Raises:
            ConfigError: no such split.
        """
        if split not in SPLITS:
            raise ConfigError(
                f"datasets.{self.name} has no split '{split}'.{did_you_mean(split, SPLITS)} "
                f"Known: {', '.join(SPLITS)}"
            )
        count = getattr(self.cfg, f"num_{split}")
        scenes = sample_split(split, count, self.cfg.seed + OTHER_WORLD)
        cfg = self.cfg
        share = Share(
            cfg.questions_per_document, cfg.structured_per_document, cfg.facts_per_document
        )
        documents = [document(scene, share) for scene in scenes]
        if split == "train":  # facts are the same everywhere: nothing to ask about them elsewhere
            extra = round(count * cfg.fact_documents)
            documents += [facts(f"playground/{cfg.seed}/facts/{k}", 8) for k in range(extra)]
        return TextDataset(self.name, split, documents)
