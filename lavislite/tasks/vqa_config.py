"""Options of the tasks that answer questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig, check_bounds
from lavislite.metrics.vqa import VERSIONS
from lavislite.tasks.baselines import BASELINES
from lavislite.tasks.prompts import QuestionPrompt

INFERENCE = ("generate", "rank")


@dataclass
class VQAConfig(RunConfig):
    """How questions are put and answered.

    Attributes:
        prompt: the question takes the place of ``{}``, in training and evaluation.
        max_len, min_len: tokens of an answer.
        length_penalty: null leaves it to the model (BLIP-2: 0 with OPT, -1 with T5).
        inference_method: "generate" writes an answer, "rank" chooses the likeliest of a list.
        answer_list: the list for "rank": a JSON file, or the answers themselves; null takes the
            dataset's.
        num_ans_candidates: how many of the list the model looks at closely, or at once.
        vqa_accuracy: which version of the official script, "2021" (current) or "2017" (LAVIS).
        baselines: what to report beside the model. "majority": the most frequent answer of the
            evaluated split, whatever the question; "blind": the language model without a picture;
            "other_image": the model with the picture of another record; "caption": the language
            model with a true caption instead of the picture (an upper bound).
    """

    task: str = "vqa"
    prompt: str = "Question: {} Short answer:"
    max_len: int = 10
    min_len: int = 1
    num_beams: int = 5
    length_penalty: float | None = None
    inference_method: str = "generate"
    answer_list: Any = None
    num_ans_candidates: int = 128
    vqa_accuracy: str = "2021"
    baselines: list[str] = field(default_factory=list)

    def check(self) -> None:
        super().check()
        check_bounds("run", self, dict.fromkeys(_COUNTS, (1, None)))
        check_bounds("run", self, {"min_len": (0, self.max_len)})
        QuestionPrompt(self.prompt).check("run.prompt")
        for key, known in (("inference_method", INFERENCE), ("vqa_accuracy", VERSIONS)):
            check_name(f"run.{key}", getattr(self, key), known)
        for baseline in self.baselines:
            check_name("run.baselines", baseline, BASELINES)


_COUNTS = ("max_len", "num_beams", "num_ans_candidates")


def check_name(key: str, name: str, known: Sequence[str]) -> None:
    """Raise ConfigError unless `name`, the value of `key`, is one of `known`."""
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f"{key}: '{name}' is unknown.{near} Known: {', '.join(known)}.")
