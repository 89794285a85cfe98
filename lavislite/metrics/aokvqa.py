"""A-OKVQA: direct answers and multiple choice, as the official script scores them.

Strings are compared to the letter, and nobody is left out of the annotators: a direct answer gets
``min(1, n / 3)`` for the n of ten who gave it. Questions marked as difficult to answer directly
count in multiple choice only. (LAVIS counts them in both, and skips questions without a result.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavislite.metrics.results import check_ids, rows_by_id


def direct_answer_score(prediction: str, answers: Sequence[str]) -> float:
    """Score of one direct answer, 0 to 1.

    Raises:
        ValueError: no answers, or something other than text.
    """
    if not isinstance(prediction, str):
        raise ValueError(f"the prediction must be a string, saw {prediction!r}")
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not len(answers):
        raise ValueError(f"expected at least one direct answer, saw {answers!r}")
    wrong = [answer for answer in answers if not isinstance(answer, str)]
    if wrong:
        raise ValueError(f"expected texts as direct answers, saw {wrong[0]!r}")
    return min(1.0, sum(answer == prediction for answer in answers) / 3)


def aokvqa_scores(
    predictions: Mapping[str, str],
    questions: Any,
    *,
    multiple_choice: bool = False,
    strict: bool = True,
) -> float:
    """Score of all questions in percent.

    Args:
        predictions: question id to answer, or with `multiple_choice` to the chosen text.
        questions: the official list; with ``direct_answers`` and ``difficult_direct_answer``, or
            with ``choices`` and ``correct_choice_idx``.
        strict: refuse a question without a prediction, a prediction without a question and a choice
            that was not offered; otherwise the first and the last are wrong answers.

    Raises:
        ValueError: names the question.
    """
    if not isinstance(predictions, Mapping):
        raise ValueError(
            f"predictions: expected an object by question id, saw {type(predictions).__name__}"
        )
    keys = ("choices", "correct_choice_idx") if multiple_choice else ("direct_answers",)
    records = rows_by_id(questions, "question", "question_id", *keys)
    asked = {
        key: record
        for key, record in records.items()
        if multiple_choice or not record.get("difficult_direct_answer", False)
    }
    if not asked:
        raise ValueError("all questions are marked as difficult to answer directly: none counts")
    if strict:
        check_ids(predictions, records, required=asked)
    total = 0.0
    for key, record in asked.items():
        if key not in predictions:
            continue
        try:
            if multiple_choice:
                total += _choice_score(predictions[key], record, strict)
            else:
                total += direct_answer_score(predictions[key], record["direct_answers"])
        except ValueError as error:
            raise ValueError(f"question_id {key!r}: {error}") from error
    return 100.0 * total / len(asked)


def _choice_score(prediction: str, record: Mapping[str, Any], strict: bool) -> float:
    choices, right = record["choices"], record["correct_choice_idx"]
    if not isinstance(prediction, str):
        raise ValueError(f"the prediction must be a string, saw {prediction!r}")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"`choices` must be a list of strings, saw {choices!r}")
    if right not in range(len(choices)):
        raise ValueError(f"correct_choice_idx {right!r} names none of the choices {choices!r}")
    if strict and prediction not in choices:
        raise ValueError(f"{prediction!r} is none of the choices {', '.join(choices)}")
    return float(prediction == choices[right])
