"""What questions are compared with: answers that need no picture, or another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.metrics.vqa import answer_text
from lavislite.tasks.base import split_name

BASELINES = ("majority", "blind", "other_image", "caption")


def answer_counts(answers: Iterable[Any]) -> list[tuple[str, int]]:
    """The different answers and how many annotators gave each, the most frequent first."""
    return Counter(map(answer_text, answers)).most_common()


def most_frequent(answers: Iterable[Sequence[Any]]) -> str:
    """The text that most annotators gave to any of the questions; the first of equals."""
    return answer_counts(answer for given in answers for answer in given)[0][0]


class OtherImages:
    """A dataset whose samples also have ``"other_image"``: the picture of the record half the split
    away, or of the next one after it that shows another picture.

    Raises:
        ConfigError: all records show the same picture.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.other(0)  # raises now rather than in a loading process

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        sample = self.dataset[index]
        other = self.dataset[self.other(index)]
        if sample is None or other is None:
            return None
        return {**sample, "other_image": other["image"]}

    def collate(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """The dataset's own batch, and the other pictures in a batch of theirs."""
        good = [dict(sample) for sample in samples if sample is not None]
        if not good:
            return {}
        others = [sample.pop("other_image") for sample in good]
        shifted = [{**s, "image": image} for s, image in zip(good, others, strict=True)]
        return {
            **self.dataset.collate(good),
            "other_image": self.dataset.collate(shifted)["image"],
        }

    def other(self, index: int) -> int:
        """The record whose picture record `index` gets; depends on nothing else."""
        n = len(self.dataset)
        own = self.dataset.annotation(index)["image_id"]
        for step in range(n):
            other = (index + n // 2 + step) % n
            if self.dataset.annotation(other)["image_id"] != own:
                return other
        raise ConfigError(
            f"run.baselines: 'other_image' needs two pictures, {split_name(self.dataset)} shows "
            "only one."
        )
