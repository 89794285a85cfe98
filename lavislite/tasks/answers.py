"""Scoring answers: the model's and the baselines', in all and by type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lavislite.common.errors import DataError
from lavislite.common.evaluation import EvalResult
from lavislite.common.logging import get_logger
from lavislite.metrics.vqa import vqa_accuracy
from lavislite.tasks.base import Row, split_name

logger = get_logger(__name__)

BASELINES = ("majority", "blind", "other_image", "caption")


def score_answers(
    rows: Sequence[Row], dataset: Any, baselines: Sequence[str], version: str
) -> EvalResult:
    """Metrics, described rows and files of answered questions.

    Args:
        rows: ``index``, ``prediction`` and the answer of each baseline but "majority".
        version: of `vqa_accuracy`.

    Raises:
        DataError: an answer of the annotations that cannot be compared with.
    """
    described = [dataset.annotation(row["index"]) | row for row in rows]
    server = [{"question_id": r["question_id"], "answer": r["prediction"]} for r in described]
    answered = [row for row in described if row["answers"]]
    if not answered:
        logger.warning("%s has no answers: nothing to compare with.", split_name(dataset))
        return EvalResult({}, described, {"answers": server})
    if "majority" in baselines:
        majority = most_frequent(row["answers"] for row in answered)
        for row in answered:
            row["majority"] = majority
    for row in answered:
        for who in ("prediction", *baselines):
            row[_score_key(who)] = _accuracy(row, who, version, dataset)
    metrics: dict[str, float] = {}
    for who in ("prediction", *baselines):
        prefix = "acc" if who == "prediction" else f"acc_{who}"
        metrics[prefix] = _mean(answered, who)
        for name, group in _groups(answered, "answer_type").items():
            metrics[f"{prefix}_{name.replace('/', '_')}"] = _mean(group, who)
    accuracy = {"overall": metrics["acc"]} | {
        key: {name: _mean(group, "prediction") for name, group in _groups(answered, kind).items()}
        for key, kind in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type"))
    }
    return EvalResult(metrics, described, {"answers": server, "accuracy": accuracy})


def most_frequent(answers: Iterable[Sequence[Any]]) -> str:
    """The text that most annotators gave to any of the questions; the first of equals."""
    counts: Counter[str] = Counter()
    for given in answers:
        counts.update(a["answer"] if isinstance(a, Mapping) else a for a in given)
    return counts.most_common(1)[0][0]


def accuracy_table(metrics: Mapping[str, float]) -> list[list[str]]:
    """Accuracies, one block per split: the model and its baselines side by side, by answer type."""
    table: list[list[str]] = []
    for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "acc"]:
        known = [b for b in BASELINES if f"{path}_{b}" in metrics]
        others = tuple(f"{path}_{b}" for b in known)
        types = [
            key.removeprefix(f"{path}_")
            for key in metrics
            if key.startswith(f"{path}_")
            and not any(key == other or key.startswith(f"{other}_") for other in others)
        ]
        columns = [path, *others]
        split = path.removesuffix("acc").rstrip("/") or "accuracy %"
        table.append([split, "model", *(name.replace("_", " ") for name in known)])
        table.append(["all", *(f"{metrics[column]:.1f}" for column in columns)])
        for name in types:
            cells = [metrics.get(f"{column}_{name}") for column in columns]
            table.append([name, *("" if cell is None else f"{cell:.1f}" for cell in cells)])
    width = max(map(len, table), default=0)
    return [row + [""] * (width - len(row)) for row in table]


def _accuracy(row: Row, who: str, version: str, dataset: Any) -> float:
    try:
        return vqa_accuracy(row[who], row["answers"], version)
    except ValueError as error:
        raise DataError(f"{dataset.record_id(row['index'])}: {error}") from error


def _groups(rows: Iterable[Row], kind: str) -> dict[str, list[Row]]:
    """The rows of each type, where it is known."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row[kind]:
            found.setdefault(row[kind], []).append(row)
    return found


def _mean(rows: Sequence[Row], who: str) -> float:
    return 100.0 * sum(row[_score_key(who)] for row in rows) / len(rows)


def _score_key(who: str) -> str:
    return "score" if who == "prediction" else f"{who}_score"
