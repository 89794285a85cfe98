"""A-OKVQA's two scores, by the rule of its own script."""

from __future__ import annotations

from typing import Any

import pytest

from lavislite.metrics.aokvqa import aokvqa_scores, direct_answer_score


def question(key: str, direct: list[str], *, difficult: bool = False) -> dict[str, Any]:
    return {
        "question_id": key,
        "choices": ["dog", "cat", "cow", "hen"],
        "correct_choice_idx": 1,
        "direct_answers": direct,
        "difficult_direct_answer": difficult,
    }


QUESTIONS = [
    question("a", ["cat"] * 4 + ["dog"] * 6),
    question("b", ["cat"] * 2 + ["kitten"] * 8),
    question("c", ["cat"] * 10, difficult=True),
]


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (9, 1)])
def test_a_direct_answer_needs_three_annotators_and_nobody_is_left_out(
    matches: int, score: float
) -> None:
    answers = ["cat"] * matches + ["dog"] * (10 - matches)
    assert direct_answer_score("cat", answers) == pytest.approx(score)


def test_strings_are_compared_to_the_letter() -> None:
    assert direct_answer_score("Cat", ["cat"] * 10) == 0
    assert direct_answer_score("a cat", ["cat"] * 10) == 0


def test_difficult_questions_count_in_multiple_choice_only() -> None:
    given = {"a": "cat", "b": "cat", "c": "dog"}
    assert aokvqa_scores(given, QUESTIONS) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert aokvqa_scores(given, QUESTIONS, multiple_choice=True) == pytest.approx(200 / 3)
    assert aokvqa_scores({"a": "cat", "b": "cat"}, QUESTIONS) > 0  # c may be left out


def test_a_missing_prediction_is_refused_or_wrong() -> None:
    with pytest.raises(ValueError, match="1 of 2 questions have no result.*'b'"):
        aokvqa_scores({"a": "cat"}, QUESTIONS)
    assert aokvqa_scores({"a": "cat"}, QUESTIONS, strict=False) == 50


def test_a_choice_that_was_not_offered_is_refused_or_wrong() -> None:
    given = {"a": "cat", "b": "cat", "c": "bird"}
    with pytest.raises(ValueError, match="question_id 'c': 'bird' is none of the choices dog, cat"):
        aokvqa_scores(given, QUESTIONS, multiple_choice=True)
    loose = aokvqa_scores(given, QUESTIONS, multiple_choice=True, strict=False)
    assert loose == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        ([], QUESTIONS, "predictions: expected an object by question id, saw list"),
        ({"a": "cat", "b": None}, QUESTIONS, "question_id 'b': the prediction must be a string"),
        ({"a": "cat", "b": "cat", "z": "x"}, QUESTIONS, "1 of 3 results are for no known.*'z'"),
        ({"a": "cat"}, [{"question_id": "a"}], "question 1: expected .* and `direct_answers`"),
        ({"a": "cat"}, [question("a", [])], "question_id 'a': expected at least one direct answer"),
        ({"a": "cat"}, [question("a", ["x"])] * 2, "question 2: question_id 'a' was there before"),
        ({"c": "cat"}, QUESTIONS[2:], "all questions are marked as difficult"),
    ],
)
def test_what_is_wrong_is_named(predictions: Any, questions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aokvqa_scores(predictions, questions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice_idx": 4}, "question_id 'a': correct_choice_idx 4 names none"),
        ({"choices": "cat"}, "question_id 'a': `choices` must be a list of strings, saw 'cat'"),
        ({"choices": ["cat", None]}, "question_id 'a': `choices` must be a list of strings"),
    ],
)
def test_choices_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aokvqa_scores({"a": "cat"}, [QUESTIONS[0] | change], multiple_choice=True)
