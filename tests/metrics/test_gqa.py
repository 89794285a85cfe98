"""GQA's figures are the official script's, and what it would stumble over is said."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from lavislite.metrics.gqa import GQAScores, gqa_match, gqa_scores

from .official_files import official

EXACT = ("accuracy", "binary", "open", "validity", "plausibility", "consistency", "distribution")
TABLES = {
    "accuracyPerStructuralType": "by_structural",
    "accuracyPerSemanticType": "by_semantic",
    "accuracyPerSteps": "by_steps",
    "accuracyPerLength": "by_length",
}


@pytest.fixture(scope="module")
def questions() -> dict[str, Any]:
    return official("gqa/sub_questions.json")


@pytest.fixture(scope="module")
def predictions() -> dict[str, str]:
    return {row["questionId"]: row["prediction"] for row in official("gqa/sub_predictions.json")}


@pytest.fixture(scope="module")
def scores(questions: dict[str, Any], predictions: dict[str, str]) -> GQAScores:
    choices = official("gqa/sub_choices.json")
    return gqa_scores(predictions, questions, choices=choices, consistency=True)


def test_all_figures_of_400_questions(scores: GQAScores) -> None:
    expected = official("expected_scores.json")["gqa/sub"]["scores"]
    for name in EXACT:
        assert getattr(scores, name) == pytest.approx(expected[name], abs=1e-12), name
    for official_name, name in TABLES.items():
        found = {str(group): list(cell) for group, cell in getattr(scores, name).items()}
        assert found == expected[official_name]
    assert scores.grounding is None  # the official script prints 0


def test_only_balanced_questions_count(
    scores: GQAScores, questions: dict[str, Any], predictions: dict[str, str]
) -> None:
    balanced = {key for key, question in questions.items() if question["isBalanced"]}
    assert 0 < len(balanced) < len(questions)
    assert scores.by_question.keys() == balanced
    assert set(scores.by_question.values()) == {0, 100}
    some = {key: answer for key, answer in predictions.items() if key in balanced}
    assert gqa_scores(some, questions).accuracy == scores.accuracy


def test_every_pair_under_the_rule_of_lavis() -> None:
    cases = official("gqa/gqa_norm_cases.json")["cases"]
    assert len(cases) == 110
    for case in cases:
        assert gqa_match(case["pred"], case["gt"]) == case["match"], case


# ------------------------------------------------------------------------- a world of two questions


def world() -> dict[str, Any]:
    """Two questions about one picture of 100 x 100 that entail each other."""

    def question(text: str, answer: str, other: str, pointer: str) -> dict[str, Any]:
        return {
            "imageId": "i",
            "question": text,
            "answer": answer,
            "isBalanced": True,
            "types": {"structural": "query", "semantic": "attr", "detailed": "queryAttr"},
            "groups": {"global": "color", "local": "x"},
            "entailed": [other],
            "semantic": [
                {"operation": "select", "argument": "dog (1)"},
                {"operation": "query", "argument": "color"},
                {"operation": "exist", "argument": "?"},
            ],
            "annotations": {"question": {"1": pointer}, "answer": {}, "fullAnswer": {}},
        }

    return {
        "questions": {
            "1": question("What color is it?", "red", "2", "left"),
            "2": question("Is it red?", "yes", "1", "all"),
        },
        "predictions": {"1": "red", "2": "no"},
        "choices": {
            "1": {"valid": ["red", "blue"], "plausible": ["red"]},
            "2": {"valid": ["yes", "no"], "plausible": ["yes"]},
        },
        "scene_graphs": {
            "i": {
                "width": 100,
                "height": 200,
                "objects": {
                    "left": {"x": 0, "y": 0, "w": 50, "h": 200},
                    "all": {"x": 0, "y": 0, "w": 100, "h": 200},
                },
            }
        },
        "attention": {"1": [[0.25, 0.5], [0.2, 0.05]], "2": [[0.1, 0.2], [0.3, 0.4]]},
    }


def test_grounding_is_attention_times_the_covered_part_of_each_cell() -> None:
    # Question 1: the left half is the map's first row (columns come first); question 2: everything.
    assert gqa_scores(**world()).grounding == pytest.approx(100 * (0.75 + 1.0) / 2)
    quarter = world()
    quarter["scene_graphs"]["i"]["objects"]["left"] = {"x": 25, "y": 100, "w": 50, "h": 100}
    quarter["attention"]["2"] = [[0.0] * 7] * 7
    # Half of the lower left and half of the lower right cell.
    assert gqa_scores(**quarter).grounding == pytest.approx(100 * (0.5 * 0.5 + 0.5 * 0.05) / 2)


def test_a_cell_counts_for_each_region_that_covers_it() -> None:
    parts = world()
    parts["questions"]["1"]["annotations"]["fullAnswer"] = {"3": "all"}
    assert gqa_scores(**parts).grounding == pytest.approx(100 * (1.75 + 1.0) / 2)


def test_grounding_of_attended_objects() -> None:
    parts = world()
    parts["attention"] = {"1": [[0, 0, 1, 0.5, 0.6], [0.5, 0, 1, 1, 0.4]], "2": [[0, 0, 1, 1, 1.0]]}
    found = gqa_scores(**parts, object_features=True).grounding
    assert found == pytest.approx(100 * (0.6 / 2 + 1.0) / 2)


def test_figures_of_the_small_world() -> None:
    found = gqa_scores(**world(), consistency=True)
    assert (found.accuracy, found.open, found.binary) == (50, 50, None)
    assert (found.validity, found.plausibility) == (100, 50)
    assert found.consistency == 0  # question 1 is right, and what it entails is not
    assert found.distribution == pytest.approx((0 + 1) * 2 / 2 / 100)
    assert found.by_steps == {2: (50, 2)}
    assert found.by_length == {4: (100, 1), 3: (0, 1)}
    assert found.by_question == {"1": 100, "2": 0}


def test_a_shared_attribute_is_answered_with_its_name() -> None:
    parts = world()
    parts["questions"]["1"]["types"]["detailed"] = "twoCommon"
    parts["predictions"]["1"] = "material"
    assert gqa_scores(**parts).validity == 100
    parts["predictions"]["1"] = "red"
    assert gqa_scores(**parts).validity == 50


def test_what_was_not_given_is_none() -> None:
    parts = world()
    found = gqa_scores(parts["predictions"], parts["questions"])
    given = (found.validity, found.plausibility, found.consistency, found.grounding)
    assert given == (None, None, None, None)
    for question in parts["questions"].values():
        del question["groups"]
    assert gqa_scores(parts["predictions"], parts["questions"]).distribution is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("predictions", "2"), None, "question '2': the prediction must be a string, saw None"),
        (("predictions", "3"), "yes", "1 of 3 results are for no known question.*'3'"),
        (("predictions",), {"1": "red"}, "1 of 2 questions have no result.*questionId '2'"),
        (("predictions",), {1: "red", 2: "no"}, "numbers and strings differ"),
        (("predictions",), [], "predictions: expected an object by question id, saw list"),
        (("questions",), [], "questions: expected an object by question id, saw list"),
        (("questions", "1", "answer"), None, "question '1' has no `answer`"),
        (("questions", "1", "isBalanced"), None, "question '1' has no `isBalanced`"),
        (("questions", "2", "types"), {}, "question '2' has no `types.structural`"),
        (("questions", "1", "answer"), 5, "'1': `answer` must be a string, saw 5"),
        (("questions", "1", "isBalanced"), "no", "`isBalanced` must be true or false, saw 'no'"),
        (("questions", "1", "groups"), 5, "question '1': `groups` must be an object, saw 5"),
        (("questions", "1", "groups"), {"global": []}, "`groups.global` must be a string, saw"),
        (("questions", "1", "question"), 5, "question '1': `question` must be a string, saw 5"),
        (("questions", "1", "semantic"), "x", "question '1': `semantic` must be a list, saw 'x'"),
        (("questions", "1", "semantic"), [5], "question '1' has no `operation`"),
        (("questions", "1", "types", "semantic"), [], "`types.semantic` must be a string"),
        (("questions", "1", "annotations", "question"), [], "must be an object, saw"),
        (("choices", "1", "valid"), 5, "question '1': `valid` must be a list, saw 5"),
        (("questions", "1", "entailed"), ["9"], "'1' entails '9'.*file with all questions"),
        (("choices",), {"1": {}}, "question '1' has no `valid`"),
        (("choices", "2"), {"valid": ["no"]}, "question '2' has no `plausible`"),
        (("scene_graphs",), None, "grounding needs attention and scene graphs"),
        (("scene_graphs",), {}, "question '1': image 'i' has no scene graph"),
        (("scene_graphs", "i", "objects"), {}, "'1' points to object 'left', .* image 'i' has no"),
        (("scene_graphs", "i", "width"), 0, "'1' points to object 'left'"),
        (("attention",), {"1": [[1.0]]}, "question '2' has no attention"),
        (("attention", "1"), [1.0, 2.0], r"question '1': expected a square map, saw shape \(2,\)"),
        (("attention", "1"), [[1.0, 2.0]], r"square map, saw shape \(1, 2\)"),
        (("attention", "1"), [[float("nan")]], "question '1': a weight is not a finite number"),
        (("attention", "1"), "much", "question '1': expected rows of numbers"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: Any, message: str) -> None:
    parts = deepcopy(world())
    place = parts
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        gqa_scores(**parts, consistency=True)


def test_wrong_boxes_of_objects() -> None:
    parts = world()
    for rows, message in (
        ([[0, 0, 1, 1]], "rows of x0, y0, x1, y1, weight"),
        ([[0, 0, 0, 1, 1]], "question '1': a box is empty"),
    ):
        parts["attention"]["1"] = rows
        with pytest.raises(ValueError, match=message):
            gqa_scores(**parts, object_features=True)


def test_without_balanced_questions_there_is_no_score() -> None:
    parts = world()
    for question in parts["questions"].values():
        question["isBalanced"] = False
    with pytest.raises(ValueError, match="none of the questions is balanced"):
        gqa_scores(parts["predictions"], parts["questions"])
