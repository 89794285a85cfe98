"""A-OKVQA: the same questions answered in one's own words, and by one of four choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar

from lavislite.common import catalog
from lavislite.common.evaluation import EvalContext
from lavislite.common.schema import RunConfig
from lavislite.metrics.aokvqa import direct_answer_score
from lavislite.metrics.vqa import answer_text, normalize_answer
from lavislite.tasks.answers import Measure, Types, accuracy_table, has_answers
from lavislite.tasks.base import Row
from lavislite.tasks.pictures import part_of
from lavislite.tasks.vqa import Candidates, VQATask
from lavislite.tasks.vqa_config import VQAConfig, check_name

CHOOSING = ("rank", "nearest")


@dataclass
class AOKVQAConfig(VQAConfig):
    """As `VQAConfig`; `inference_method` and `answer_list` are about the direct answers.

    Attributes:
        multiple_choice: how one of a question's choices is chosen. "rank": the one that the model
            finds likeliest after the prompt; "nearest": the one whose letters are most like those
            of the direct answer, which costs nothing.
    """

    task: str = "aok_vqa"
    multiple_choice: str = "rank"

    def check(self) -> None:
        super().check()
        check_name("run.multiple_choice", self.multiple_choice, CHOOSING)


@catalog.tasks.register("aok_vqa")
class AOKVQATask(VQATask):
    """``direct_answer`` and ``multiple_choice``, as the official script scores them.

    Direct answers get ``min(1, n / 3)`` for the n annotators who gave them to the letter; questions
    marked as difficult to answer directly are left out. The baseline "majority" says the most
    frequent direct answer, and chooses the place among the choices that is right most often.
    """

    Config: ClassVar[type[RunConfig]] = AOKVQAConfig
    name = "aok_vqa"
    evaluations = ("aok_vqa",)
    default_monitor = "direct_answer"
    types: ClassVar[tuple[Types, ...]] = ()
    cfg: AOKVQAConfig

    def measures(self) -> list[Measure]:
        return [
            Measure(_direct_score, metric="direct_answer", counts=_is_direct),
            Measure(_choice_score, metric="multiple_choice", answers="choice", counts=_has_choice),
        ]

    def ask(
        self, model: Any, dataset: Any, samples: Mapping[str, Any], candidates: Candidates | None
    ) -> dict[str, list[Any]]:
        """Direct answers, and a ``choice`` where the question has choices (else None)."""
        said = super().ask(model, dataset, samples, candidates)
        choices = [_choices(dataset.annotation(i)) for i in samples["index"].tolist()]
        asked = [b for b, offered in enumerate(choices) if offered]
        offered = [choices[b] for b in asked]
        if self.cfg.multiple_choice == "nearest":
            answers = [nearest(said["prediction"][b], choices[b]) for b in asked]
        else:
            part = part_of(samples, asked)
            answers = self.predict_answers(model, part, offered) if asked else []
        chosen: list[str | None] = [None] * len(choices)
        for b, answer in zip(asked, answers, strict=True):
            chosen[b] = answer
        return {**said, "choice": chosen}

    def add_majority(self, rows: list[Row]) -> None:
        super().add_majority(rows)
        places = Counter(row["details"]["correct_choice_idx"] for row in rows if _has_choice(row))
        place = places.most_common(1)[0][0] if places else 0
        for row in rows:
            offered = _choices(row)
            row["majority_choice"] = offered[min(place, len(offered) - 1)] if offered else None

    def finish(
        self,
        rows: list[Row],
        dataset: Any,  # noqa: ARG002
        ctx: EvalContext,  # noqa: ARG002
        metrics: dict[str, float],
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The leaderboard's file holds both answers to each question."""
        for row in rows:
            row["choices"] = _choices(row)
        leaderboard = {
            str(row["question_id"]): {
                "multiple_choice": row["choice"] or "",
                "direct_answer": row["prediction"],
            }
            for row in rows
        }
        return metrics, {"leaderboard": leaderboard}

    def example(self, row: Row) -> Row:
        shown = super().example(row)
        if row["choice"] is None:
            return shown
        right = row["details"].get("correct_choice_idx")
        return {
            **shown,
            "question": f"{row['question']} ({' / '.join(_choices(row))})",
            "truth": [*shown["truth"], *([] if right is None else [f"choice: {_right(row)}"])],
            "generated": f"{row['prediction']} (choice: {row['choice']})",
        }

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        """Direct answers and choices, the model beside its baselines; one block per split."""
        table: list[list[str]] = []
        for name in ("direct_answer", "multiple_choice"):
            for row in accuracy_table(metrics, name):
                table.append([name.replace("_", " "), *row[1:]] if row[0] == "all" else row)
        return table


def nearest(answer: str, choices: Sequence[str]) -> str:
    """The choice most like `answer`: the same, else the one with the most letters in common runs.

    Both are normalised as VQA answers are; the first of equals.
    """
    said = normalize_answer(answer)
    likeness = [SequenceMatcher(None, said, normalize_answer(c)).ratio() for c in choices]
    return choices[likeness.index(max(likeness))]


def _direct_score(answer: str, row: Row) -> float:
    return direct_answer_score(answer, [answer_text(given) for given in row["answers"]])


def _choice_score(answer: str | None, row: Row) -> float:
    return float(answer == _right(row))


def _is_direct(row: Row) -> bool:
    return has_answers(row) and not row.get("details", {}).get("difficult_direct_answer", False)


def _has_choice(row: Row) -> bool:
    return bool(_choices(row)) and row["details"].get("correct_choice_idx") is not None


def _choices(row: Mapping[str, Any]) -> list[str]:
    return row.get("details", {}).get("choices") or []


def _right(row: Row) -> str:
    return _choices(row)[row["details"]["correct_choice_idx"]]
