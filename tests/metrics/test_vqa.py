"""VQA accuracy agrees with the official scripts, and says what is wrong with a result file.

The truth table, TextVQA and OK-VQA were scored by the official script of 2021 and of 2017,
`lavis_*` by LAVIS.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lavislite.metrics.vqa import (
    clean_punctuation,
    clean_words,
    normalize_answer,
    vqa_accuracy,
    vqa_scores,
)

from .official_files import official

DATA = Path(__file__).parents[1] / "data" / "vqa"
SCORES = {"2021": "score", "2017": "score_2017"}
OFFICIAL = {"2021": "official_2021", "2017": "official_2017_as_in_LAVIS"}


def read(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize("version", SCORES)
def test_every_row_of_the_truth_table(version: str) -> None:
    cases = official("vqa_truth_table.json")["cases"]
    assert len(cases) == 200
    for case in cases:
        objects = [{"answer": a, "answer_id": n} for n, a in enumerate(case["answers"], start=1)]
        for answers in (objects, case["answers"]):
            score = vqa_accuracy(case["prediction"], answers, version)
            assert score == pytest.approx(case[SCORES[version]], abs=1e-6), case


def test_normal_forms_of_the_truth_table() -> None:
    for case in official("vqa_truth_table.json")["cases"]:
        assert normalize_answer(case["prediction"]) == case["norm_prediction"]
        assert [normalize_answer(a) for a in case["answers"]] == case["norm_answers"]


@pytest.mark.parametrize("version", SCORES)
def test_annotators_that_cannot_be_told_apart_and_odd_numbers_of_them(version: str) -> None:
    for case in official("vqa_truth_table.json")["special_cases"]:
        if case.get(SCORES[version]) is not None:
            score = vqa_accuracy(case["prediction"], case["answers"], version)
            assert score == pytest.approx(case[SCORES[version]], abs=1e-6), case["name"]
        else:  # where the official script breaks down
            with pytest.raises(ValueError):
                vqa_accuracy(case["prediction"], case["answers"], version)


@pytest.mark.parametrize("version", OFFICIAL)
@pytest.mark.parametrize(
    ("part", "annotations"),
    [
        ("vqa/textvqa_val1000", "vqa/textvqa_val1000_annotations.json"),
        ("okvqa/pica_gpt3_5GT", "okvqa/okvqa_val2014_annotations_rebuilt.json"),
        ("okvqa/pica_gpt3_VinVL", "okvqa/okvqa_val2014_annotations_rebuilt.json"),
        ("okvqa/pica_gpt3_VinVLTag", "okvqa/okvqa_val2014_annotations_rebuilt.json"),
    ],
)
def test_thousands_of_questions_as_the_official_script_scores_them(
    part: str, annotations: str, version: str
) -> None:
    rows = official(annotations)["annotations"]
    scores = vqa_scores(official(f"{part}_results.json"), rows, version)
    expected = official("expected_scores.json")[part][OFFICIAL[version]]
    assert len(scores.by_question) == expected["n_questions"]
    printed = expected["accuracy"]
    assert scores.overall == pytest.approx(printed["overall"], abs=6e-7)
    assert scores.by_answer_type == pytest.approx(printed["perAnswerType"], abs=6e-7)
    assert scores.by_question_type == pytest.approx(printed["perQuestionType"], abs=6e-7)


@pytest.mark.parametrize("version", OFFICIAL)
def test_each_of_a_thousand_questions(version: str) -> None:
    rows = official("vqa/textvqa_val1000_annotations.json")["annotations"]
    found = vqa_scores(official("vqa/textvqa_val1000_results.json"), rows, version).by_question
    expected = official("vqa/textvqa_val1000_per_question.json")[OFFICIAL[version]]
    assert found == pytest.approx({int(q): score for q, score in expected.items()}, abs=1e-6)


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


@pytest.mark.parametrize("version", SCORES)
@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["dog"], 1.0),
        (["cat"], 0.0),
        (["dog", "dog"], 1.0),
        (["dog", "cat"], 0.5),
        (["dog", "dog", "dog"], 1.0),
        (["dog", "dog", "cat"], (0.5 + 0.5 + 1.0) / 3),
        (["dog", "cat", "cow"], 1 / 3),
        ([{"answer": "dog"}] * 3, 1.0),  # nobody can tell them apart; they are three
        (["dog"] * 4, 1.0),
    ],
)
def test_few_answers_scaled(answers: list[str], score: float, version: str) -> None:
    assert vqa_accuracy("dog", answers, version, few="scaled") == pytest.approx(score)


@pytest.mark.parametrize("version", SCORES)
def test_a_single_answer_scaled_is_met_by_its_normal_form(version: str) -> None:
    assert vqa_accuracy("The Dog.", ["dog"], version, few="scaled") == 1
    assert vqa_accuracy("2", ["two"], version, few="scaled") == 1
    assert vqa_accuracy("dogs", ["dog"], version, few="scaled") == 0


@pytest.mark.parametrize("version", SCORES)
def test_from_four_answers_on_scaled_is_the_official_rule(version: str) -> None:
    table = official("vqa_truth_table.json")
    cases = [c for c in table["cases"] + table["special_cases"] if c["score"] is not None]
    for case in cases:
        if len(case["answers"]) >= 4:
            official_score, scaled = (
                vqa_accuracy(case["prediction"], case["answers"], version, few)
                for few in ("official", "scaled")
            )
            assert scaled == official_score, case


def test_few_answers_of_a_whole_file_scaled() -> None:
    annotations = [
        {"question_id": 1, "answers": ["dog"]},
        {"question_id": 2, "answers": ["cat", "cat"]},
    ]
    results = [{"question_id": 1, "answer": "dog"}, {"question_id": 2, "answer": "cat"}]
    assert vqa_scores(results, annotations).overall == pytest.approx(100 / 6)
    assert vqa_scores(results, annotations, few="scaled").overall == 100


def test_what_is_wrong_with_an_answer() -> None:
    with pytest.raises(ValueError, match="expected 2021 or 2017, saw '2015'"):
        vqa_accuracy("a", ["a"], "2015")
    with pytest.raises(ValueError, match="expected official or scaled, saw 'none'"):
        vqa_accuracy("a", ["a"], few="none")
    with pytest.raises(ValueError, match=r"answers\[1\]: expected a text.* saw 3"):
        vqa_accuracy("a", ["a", 3])
    with pytest.raises(ValueError, match="at least one annotator's answer, saw 'yes'"):
        vqa_accuracy("yes", "yes")
    broken = [{"question_id": 7, "answers": []}]
    with pytest.raises(ValueError, match="question_id 7: expected at least one"):
        vqa_scores([{"question_id": 7, "answer": "x"}], broken)
