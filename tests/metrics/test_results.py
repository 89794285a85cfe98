"""A result file that does not fit is refused, and the record that is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from lavislite.metrics.results import answers_by_id, check_ids, rows_by_id


def test_answers_of_a_good_file_keep_their_order() -> None:
    results = [{"question_id": 2, "answer": "b", "more": 0}, {"question_id": 1, "answer": ""}]
    assert list(answers_by_id(results, [1, 2]).items()) == [(2, "b"), (1, "")]


def test_the_keys_may_have_other_names() -> None:
    results = [{"questionId": "7", "prediction": "yes"}]
    assert answers_by_id(results, ["7"], "questionId", "prediction") == {"7": "yes"}
    with pytest.raises(ValueError, match="`questionId` and `prediction`, saw question_id, answer"):
        answers_by_id([{"question_id": "7", "answer": "y"}], ["7"], "questionId", "prediction")


def test_only_what_is_required_must_be_there() -> None:
    check_ids([1], [1, 2, 3], required=[1])
    with pytest.raises(ValueError, match="1 of 2 questions have no result.*question_id 3"):
        check_ids([1], [1, 2, 3], required=[1, 3])
    with pytest.raises(ValueError, match="1 of 2 results are for no known question.*4"):
        check_ids([1, 4], [1, 2, 3], required=[1])


def test_results_of_another_data_set_are_recognised() -> None:
    with pytest.raises(ValueError, match="none in common; another data set or split"):
        check_ids([10, 11], [1, 2])


@pytest.mark.parametrize("key", [None, 1.5, True, ["a"]])
def test_an_id_that_is_none(key: Any) -> None:
    with pytest.raises(ValueError, match="annotation 1: question_id must be a string or a number"):
        rows_by_id([{"question_id": key}], "annotation", "question_id")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"question_id": 1}, "expected a list of objects, saw dict"),
        ([], "saw an empty list"),
        ([{"question_id": 1, "caption": "x"}], r"result 1: expected `question_id` and `answer`"),
        (["yes"], "result 1: expected .* saw 'yes'"),
        (
            [{"question_id": 1, "answer": None}],
            "question_id 1: `answer` must be a string, saw None",
        ),
        ([{"question_id": 1, "answer": "a"}] * 2, "result 2: question_id 1 was there before"),
        ([{"question_id": 1, "answer": "a"}], "1 of 2 questions have no result.* question_id 2"),
        (
            [{"question_id": n, "answer": "a"} for n in (1, 2, 3)],
            "1 of 3 results are for no known question.* question_id 3",
        ),
        (
            [{"question_id": str(n), "answer": "a"} for n in (1, 2)],
            r"question_id 1 \(numbers and strings differ\)",
        ),
    ],
)
def test_what_is_wrong_with_a_result_file(results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answers_by_id(results, [1, 2])
