"""VQA accuracy agrees with the official scripts, and says what is wrong with a result file.

`truth_table` and `textvqa_val1000` were scored by the official script of 2021 and of 2017,
`lavis_*` by LAVIS. TextVQA's questions and answers are CC BY 4.0.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lavislite.metrics.vqa import (
    check_results,
    clean_punctuation,
    clean_words,
    normalize_answer,
    vqa_accuracy,
    vqa_scores,
)

DATA = Path(__file__).parents[1] / "data" / "vqa"
SCORES = {"2021": "score", "2017": "score_2017"}


def read(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize("version", SCORES)
def test_every_row_of_the_truth_table(version: str) -> None:
    cases = read("truth_table")["cases"]
    assert len(cases) == 200
    for case in cases:
        official = [{"answer": a, "answer_id": n} for n, a in enumerate(case["answers"], start=1)]
        for answers in (official, case["answers"]):
            score = vqa_accuracy(case["prediction"], answers, version)
            assert score == pytest.approx(case[SCORES[version]], abs=1e-6), case


def test_normal_forms_of_the_truth_table() -> None:
    for case in read("truth_table")["cases"]:
        assert normalize_answer(case["prediction"]) == case["norm_prediction"]
        assert [normalize_answer(a) for a in case["answers"]] == case["norm_answers"]


@pytest.mark.parametrize("version", SCORES)
def test_annotators_that_cannot_be_told_apart_and_odd_numbers_of_them(version: str) -> None:
    for case in read("truth_table")["special_cases"]:
        if case.get(SCORES[version]) is not None:
            score = vqa_accuracy(case["prediction"], case["answers"], version)
            assert score == pytest.approx(case[SCORES[version]], abs=1e-6), case["name"]
        else:  # where the official script breaks down
            with pytest.raises(ValueError):
                vqa_accuracy(case["prediction"], case["answers"], version)


@pytest.mark.parametrize("version", SCORES)
def test_a_thousand_questions_as_the_official_script_scores_them(version: str) -> None:
    data = read("textvqa_val1000")
    scores = vqa_scores(data["results"], data["annotations"]["annotations"], version)
    expected = data["expected"][version]
    assert scores.overall == pytest.approx(expected["overall"], abs=1e-6)
    assert scores.by_answer_type == pytest.approx(expected["perAnswerType"], abs=1e-6)
    assert scores.by_question_type == pytest.approx(expected["perQuestionType"], abs=1e-6)
    for question, score in expected["perQuestion"].items():
        assert scores.by_question[int(question)] == pytest.approx(score, abs=1e-6)


def test_the_version_of_2017_is_what_lavis_computes() -> None:
    data = read("lavis_accuracy")
    samples = data["samples"]
    results = [{"question_id": s["question_id"], "answer": s["prediction"]} for s in samples]
    scores = vqa_scores(results, samples, "2017")
    assert scores.overall == pytest.approx(data["accuracy"]["overall"], abs=0.005)
    assert scores.by_answer_type == pytest.approx(data["accuracy"]["perAnswerType"], abs=0.005)
    assert scores.by_question_type == pytest.approx(data["accuracy"]["perQuestionType"], abs=0.005)
    expected = {int(q): score for q, score in data["per_question"].items()}
    assert scores.by_question == pytest.approx(expected, abs=0.005)


def test_both_halves_of_the_normalisation() -> None:
    for case in read("lavis_normalize"):
        assert clean_punctuation(case["input"]) == case["processPunctuation"]
        assert clean_words(case["input"]) == case["processDigitArticle"]
        assert clean_words(clean_punctuation(case["input"])) == case["both"]


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
            "1 of 2 questions are in no annotation.* question_id 3",
        ),
        (
            [{"question_id": str(n), "answer": "a"} for n in (1, 2)],
            r"question_id 1 \(numbers and strings differ\)",
        ),
    ],
)
def test_what_is_wrong_with_a_result_file(results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_results(results, [1, 2])


def test_what_is_wrong_with_an_answer() -> None:
    with pytest.raises(ValueError, match="expected 2021 or 2017, saw '2015'"):
        vqa_accuracy("a", ["a"], "2015")
    with pytest.raises(ValueError, match=r"answers\[1\]: expected a text.* saw 3"):
        vqa_accuracy("a", ["a", 3])
    with pytest.raises(ValueError, match="at least one annotator's answer, saw 'yes'"):
        vqa_accuracy("yes", "yes")
    broken = [{"question_id": 7, "answers": []}]
    with pytest.raises(ValueError, match="question_id 7: expected at least one"):
        vqa_scores([{"question_id": 7, "answer": "x"}], broken)
