"""Scoring answers: the model's and the baselines', in all and by type, by any measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavislite.common.errors import DataError
from lavislite.common.logging import get_logger, warn_once
from lavislite.metrics.vqa import vqa_accuracy
from lavislite.tasks.base import Row, padded, split_name
from lavislite.tasks.baselines import BASELINES

logger = get_logger(__name__)

MODEL = ""  # who answers, where baselines go by their names


def has_answers(row: Row) -> bool:
    """Whether anybody answered the question of `row`."""
    return bool(row["answers"])


@dataclass(frozen=True)
class Measure:
    """One way of scoring answers.

    Attributes:
        score: an answer and what is known about its question, to 0 ... 1.
        metric: the metric's name.
        suffix: what follows it, after the baseline's name: ``acc_blind_exact``.
        answers: key of the model's answers that it looks at.
        counts: the questions that it counts; it is never asked about others.
    """

    score: Callable[[str, Row], float]
    metric: str = "acc"
    suffix: str = ""
    answers: str = "prediction"
    counts: Callable[[Row], bool] = has_answers

    def name(self, who: str, kind: str = "") -> str:
        """The metric of the model or a baseline, in all or of one type of questions."""
        parts = (self.metric, who, self.suffix, kind.replace("/", "_"))
        return "_".join(part for part in parts if part)

    def answer_key(self, who: str) -> str:
        """The rows' key of the answers."""
        return answer_key(who, self.answers)

    def score_key(self, who: str) -> str:
        """The rows' key of the scores: ``score, score_exact, blind_score, choice_score``."""
        answers = "" if self.answers == "prediction" else self.answers
        return "_".join(part for part in (who, answers, "score", self.suffix) if part)


@dataclass(frozen=True)
class Types:
    """Questions by type: `of` names a question's type, "" where it is not known.

    `key` is the types' key in the file of accuracies; `shown` makes metrics of them as well.
    """

    key: str
    of: Callable[[Row], str]
    shown: bool = True


def answer_key(who: str, answers: str = "prediction") -> str:
    """Key of the model's or a baseline's answers: ``prediction, choice, blind, blind_choice``."""
    if who == MODEL:
        return answers
    return who if answers == "prediction" else f"{who}_{answers}"


def score_answers(
    rows: Sequence[Row],
    dataset: Any,
    measures: Sequence[Measure],
    baselines: Sequence[str],
    types: Sequence[Types],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics in percent, and the accuracies by type for a file; adds their scores to the rows.

    Types are told apart by the first measure; no accuracies when it counts no question.

    Args:
        rows: what is known about each question, with the model's and the baselines' answers.

    Raises:
        DataError: an answer of the annotations that cannot be compared with.
    """
    metrics: dict[str, float] = {}
    answerers = (MODEL, *baselines)
    for measure in measures:
        counted = [row for row in rows if measure.counts(row)]
        for who in answerers if counted else ():
            for row in counted:
                row[measure.score_key(who)] = _score(measure, who, row, dataset)
            metrics[measure.name(who)] = _mean(counted, measure.score_key(who))
    first = measures[0]
    if first.name(MODEL) not in metrics:
        return metrics, {}
    accuracy: dict[str, Any] = {"overall": metrics[first.name(MODEL)]}
    counted = [row for row in rows if first.counts(row)]
    for kind in types:
        groups = _grouped(counted, kind.of)
        accuracy[kind.key] = {
            name: _mean(group, first.score_key(MODEL)) for name, group in groups.items()
        }
        for who in answerers if kind.shown else ():
            for name, group in groups.items():
                metrics[first.name(who, name)] = _mean(group, first.score_key(who))
    return metrics, accuracy


def vqa_score(version: str) -> Callable[[str, Row], float]:
    """VQA accuracy as a `Measure` wants it; a question with few answers can be right as well."""
    return lambda answer, row: vqa_accuracy(answer, row["answers"], version, few="scaled")


VQA_TYPES = (
    Types("perAnswerType", lambda row: row["answer_type"]),
    # VQAv2 has 65 of them: too many for the log.
    Types("perQuestionType", lambda row: row["question_type"], shown=False),
)


def report_few_answers(rows: Iterable[Row], dataset: Any) -> None:
    """Say once how questions are scored that have not the ten answers of the rule."""
    numbers = Counter(len(row["answers"]) for row in rows if row["answers"])
    others = sorted(number for number in numbers if number != 10)
    if not others:
        return
    span = f"{others[0]} to {others[-1]}" if len(others) > 1 else f"{others[0]}"
    message = (
        f"{split_name(dataset)}: {sum(numbers[n] for n in others)} of {sum(numbers.values())} "
        f"questions have {span} answers, not ten. Of n, one annotator is left out at a time, and "
        "an answer gets min(1, agreeing / min(3, n - 1)); with one, it must be equal to it but "
        "for case, articles and punctuation."
    )
    warn_once(logger, ("few answers", split_name(dataset)), message)


def accuracy_table(
    metrics: Mapping[str, float], name: str = "acc", extras: Sequence[str] = ()
) -> list[list[str]]:
    """Accuracies, one block per split: the model and its baselines side by side, by type.

    Args:
        name: the metric that a block begins with; what begins with it as well are its types.
        extras: further metrics of the model alone.
    """
    table: list[list[str]] = []
    for path in [key for key in metrics if key.rsplit("/", 1)[-1] == name]:
        start = path.removesuffix(name)
        known = [b for b in BASELINES if f"{path}_{b}" in metrics]
        others = tuple(f"{path}_{b}" for b in known)
        types = [
            key.removeprefix(f"{path}_")
            for key in metrics
            if key.startswith(f"{path}_")
            and not any(key == other or key.startswith(f"{other}_") for other in others)
        ]
        columns = [path, *others]
        split = start.rstrip("/") or "accuracy %"
        table.append([split, "model", *(name.replace("_", " ") for name in known)])
        table.append(["all", *(f"{metrics[column]:.1f}" for column in columns)])
        for kind in types:
            cells = [metrics.get(f"{column}_{kind}") for column in columns]
            table.append([kind, *("" if cell is None else f"{cell:.1f}" for cell in cells)])
        for extra in extras:
            if start + extra in metrics:
                table.append([extra, f"{metrics[start + extra]:.1f}"])
    return padded(table)


def _score(measure: Measure, who: str, row: Row, dataset: Any) -> float:
    try:
        return measure.score(row[measure.answer_key(who)], row)
    except ValueError as error:
        raise DataError(f"{dataset.record_id(row['index'])}: {error}") from error


def _grouped(rows: Iterable[Row], of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows of each type, where it is known."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if name := of(row):
            found.setdefault(name, []).append(row)
    return found


def _mean(rows: Sequence[Row], key: str) -> float:
    return 100.0 * sum(row[key] for row in rows) / len(rows)
