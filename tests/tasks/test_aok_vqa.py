"""Direct answers and multiple choice: two questions to the model, two official figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.metrics.aokvqa import aokvqa_scores
from lavislite.tasks.aok_vqa import AOKVQAConfig, AOKVQATask, nearest

from .fakes import run_processes
from .question_parts import BASELINES, Answerer, Questions

CHOICES = {0: ["purple", "red", "green", "blue"], 1: ["maybe", "yes", "no", "never"]}


class Choices(Questions):
    """Every fifth question is too difficult for a direct answer."""

    evaluation = "aok_vqa"

    def __init__(self, pictures: int = 6, *, answered: bool = True, offered: bool = True) -> None:
        super().__init__(pictures, answered=answered)
        self.offered = offered

    def annotation(self, i: int) -> dict[str, Any]:
        found = super().annotation(i)
        details: dict[str, Any] = {"rationales": ["because"]}
        if self.offered:
            details["choices"] = CHOICES[i % 2]
        if self.answered:
            right = Questions(self.pictures).annotation(i)["answers"][0]
            details |= {
                "correct_choice_idx": CHOICES[i % 2].index(right),
                "difficult_direct_answer": i % 5 == 0,
            }
        return {**found, "details": details}


class Chooser(Answerer):
    """Answers "purple" in its own words to the questions about picture 0, and chooses right."""

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        said = super().predict_answers(samples, **options)
        if options["inference_method"] == "rank":
            pairs = zip(said, options["answer_list"], strict=True)
            return [answer if answer in offered else offered[0] for answer, offered in pairs]
        if "image" not in samples:
            return said
        numbers = samples["image"][:, 0, 0, 0].long().tolist()
        return ["purple" if n == 0 else answer for n, answer in zip(numbers, said, strict=True)]


def task(**options: Any) -> AOKVQATask:
    cfg = AOKVQAConfig(**options)
    cfg.check()
    return AOKVQATask(cfg)


def evaluate(
    dataset: Any = None, model: Any = None, batch_size: int = 5, **options: Any
) -> EvalResult:
    data = Choices() if dataset is None else dataset
    return task(**options).evaluate(model or Chooser(), data, EvalContext(batch_size=batch_size))


def official(result: EvalResult, dataset: Any, kind: str) -> float:
    records = [dataset.annotation(row["index"]) for row in result.rows]
    questions = [
        {"question_id": str(r["question_id"]), "direct_answers": r["answers"], **r["details"]}
        for r in records
    ]
    given = {key: entry[kind] for key, entry in result.files["leaderboard"].items()}
    return aokvqa_scores(given, questions, multiple_choice=kind == "multiple_choice")


def test_both_figures_are_those_of_the_official_script() -> None:
    result = evaluate()
    # Question 0 is difficult and does not count; question 1 ("purple") is wrong, of nine.
    assert result.metrics == {
        "direct_answer": pytest.approx(100 * 8 / 9), "multiple_choice": 100.0
    }  # fmt: skip
    for kind, value in result.metrics.items():
        assert official(result, Choices(), kind) == pytest.approx(value)


def test_the_choice_is_ranked_among_the_questions_own_choices_after_the_prompt() -> None:
    model = Chooser()
    evaluate(model=model, batch_size=4, prompt="Q: {} A:")
    (texts, _, options), (ranked, _, choosing) = model.asked[:2]
    assert texts == ranked == ["Q: colour? A:", "Q: odd? A:"] * 2
    assert options["inference_method"] == "generate"
    assert "answer_list" not in options
    assert choosing["inference_method"] == "rank"
    assert choosing["answer_list"] == [CHOICES[0], CHOICES[1]] * 2
    assert model.bare[1] == ["colour?", "odd?"] * 2


def test_or_the_nearest_to_the_direct_answer_is_taken() -> None:
    model = Chooser()
    result = evaluate(model=model, multiple_choice="nearest")
    assert [row["choice"] for row in result.rows[:2]] == ["purple", "yes"]
    assert result.metrics["multiple_choice"] == pytest.approx(100 * 10 / 12)
    assert {options["inference_method"] for *_, options in model.asked} == {"generate"}


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("The Red", "red"), ("greenish", "green"), ("", "blue"), ("three", "3"), ("zzz", "blue")],
)
def test_what_is_nearest(answer: str, choice: str) -> None:
    assert nearest(answer, ["blue", "red", "green", "3"]) == choice


def test_baselines_answer_both_kinds() -> None:
    metrics = evaluate(baselines=BASELINES).metrics
    assert metrics["multiple_choice_other_image"] == 50.0
    assert metrics["direct_answer_caption"] > metrics["direct_answer_blind"]
    # Seven of ten say the right one; the most frequent word of all is "what", three of ten.
    assert metrics["direct_answer_majority"] == 100.0
    # The second place is right most often: red and yes, of three colours and two.
    assert metrics["multiple_choice_majority"] == pytest.approx(100 * (2 + 3) / 12)
    table = task().summary({f"a/val/{name}": value for name, value in metrics.items()})
    assert [row[0] for row in table] == ["a/val", "direct answer", "a/val", "multiple choice"]
    assert table[0] == ["a/val", "model", "majority", "blind", "other image", "caption"]


def test_the_leaderboards_file_and_the_rows() -> None:
    result = evaluate()
    assert result.files["leaderboard"]["101"] == {
        "multiple_choice": "no",
        "direct_answer": "purple",
    }
    row = result.rows[1]
    assert (row["prediction"], row["score"]) == ("purple", 0.0)
    assert (row["choice"], row["choice_score"], row["choices"]) == ("no", 1.0, CHOICES[1])
    assert "score" not in result.rows[0]  # difficult
    assert "details" not in row
    json.dumps([result.rows, result.files])


def test_a_test_split_gives_the_leaderboards_file_alone() -> None:
    result = evaluate(Choices(answered=False), baselines=["majority", "blind"])
    assert result.metrics == {}
    assert set(result.files) == {"leaderboard"}
    entry = result.files["leaderboard"]["102"]
    assert entry == {"multiple_choice": "green", "direct_answer": "green"}
    bare = evaluate(Choices(answered=False, offered=False))
    assert bare.files["leaderboard"]["102"] == {"multiple_choice": "", "direct_answer": "green"}


def test_figures_depend_neither_on_batches_nor_on_processes() -> None:
    def found(size: int = 5) -> EvalResult:
        return evaluate(Choices(7), batch_size=size, baselines=BASELINES)

    alone = found()
    assert all(found(size) == alone for size in (1, 3, 64))
    assert run_processes(2, found) == [alone, alone]


def test_examples_show_the_choices() -> None:
    shown = task().examples(Chooser(), Choices(), EvalContext(), n=12)[1]
    assert shown["question"] == "odd? (maybe / yes / no / never)"
    assert shown["generated"] == "purple (choice: no)"
    assert shown["truth"] == ["no (7)", "what (3)", "choice: no"]
    assert shown["verdict"] == "wrong"


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"run.multiple_choice: 'rnk' is unknown.*'rank'"):
        task(multiple_choice="rnk")
    data = Choices()
    data.evaluation = "vqa"
    with pytest.raises(ConfigError, match="Task 'aok_vqa' cannot evaluate"):
        evaluate(data)
    assert task().default_monitor == "direct_answer"
