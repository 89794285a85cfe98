"""Answers and their baselines: what the model is asked, and how answers are scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lavislite.common import logging as our_logging
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.tasks.baselines import OtherImages
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig

from .fakes import run_processes
from .question_parts import BASELINES, Answerer, Questions


def task(**options: Any) -> VQATask:
    cfg = VQAConfig(**options)
    cfg.check()
    return VQATask(cfg)


def evaluate(
    dataset: Any = None, model: Any = None, batch_size: int = 4, **options: Any
) -> EvalResult:
    return task(**options).evaluate(
        model or Answerer(), dataset or Questions(), EvalContext(batch_size=batch_size)
    )


def test_the_model_beside_its_baselines() -> None:
    metrics = evaluate(baselines=BASELINES).metrics
    assert metrics["acc"] == metrics["acc_yes_no"] == metrics["acc_other"] == 100.0
    # "what" is the annotators' most frequent word: three of ten everywhere.
    assert metrics["acc_majority"] == pytest.approx(90.0)
    assert metrics["acc_blind_other"] == pytest.approx(100 / 3)
    assert metrics["acc_blind_yes_no"] == 50.0
    assert metrics["acc_caption_other"] == 100.0
    assert metrics["acc_caption_yes_no"] == 50.0
    # Three pictures further: the same colour, and the other parity.
    assert metrics["acc_other_image_other"] == 100.0
    assert metrics["acc_other_image_yes_no"] == 0.0
    assert set(evaluate().metrics) == {"acc", "acc_yes_no", "acc_other"}


def test_the_question_is_put_in_the_prompt_once() -> None:
    model = Answerer()
    evaluate(model=model, baselines=["caption", "blind"], length_penalty=-1.0)
    (texts, with_image, options), *others = model.asked[:3]
    assert texts[0] == "Question: colour? Short answer:"
    assert with_image
    assert options == {
        "num_beams": 5, "inference_method": "generate", "max_len": 10, "min_len": 1,
        "num_ans_candidates": 128, "prompt": "{}", "length_penalty": -1.0,
    }  # fmt: skip
    assert [seen for _, seen, _ in others] == [False, False]
    assert others[0][0][0] == "a red thing. Question: colour? Short answer:"
    assert others[1][0][0] == texts[0]
    samples = {"text_input": ["odd?"], "text_output": ["no"]}
    trained = task().train_step(model, samples)["seen"]
    assert trained["text_input"] == ["Question: odd? Short answer:"]
    assert trained["text_output"] == ["no"]
    assert task(prompt="").train_step(model, samples)["seen"]["text_input"] == ["odd?"]
    assert task().train_step(model, {"text_input": ["a cat"]})["seen"] == {"text_input": ["a cat"]}
    assert samples == {"text_input": ["odd?"], "text_output": ["no"]}


def test_the_model_gets_the_bare_question_too_in_training_and_evaluation() -> None:
    model = Answerer()
    evaluate(model=model, baselines=BASELINES)
    assert len(model.bare) == len(model.asked) == 4 * 3
    assert all(bare == ["colour?", "odd?"] * 2 for bare in model.bare)
    samples = {"text_input": ["odd?"], "text_output": ["no"]}
    assert task().train_step(model, samples)["seen"]["question"] == ["odd?"]


def test_metrics_depend_neither_on_batches_nor_on_processes() -> None:
    def metrics(batch_size: int = 4) -> dict[str, float]:
        return evaluate(Questions(7), batch_size=batch_size, baselines=BASELINES).metrics

    alone = metrics()
    assert all(metrics(size) == alone for size in (1, 3, 64))
    assert run_processes(2, metrics) == [alone, alone]


def test_another_picture_is_never_the_same_picture() -> None:
    for pictures in (2, 3, 5):
        shifted = OtherImages(Questions(pictures))
        for i in range(2 * pictures):
            own, other = i // 2, shifted.other(i) // 2
            assert own != other
            assert float(shifted[i]["other_image"][0, 0, 0]) == other
    with pytest.raises(ConfigError, match="'other_image' needs two pictures, questions/val shows"):
        evaluate(Questions(1), baselines=["other_image"])


def test_rows_and_the_servers_file() -> None:
    result = evaluate(baselines=["blind", "majority"])
    row = result.rows[3]
    assert (row["question_id"], row["question"], row["prediction"]) == (103, "odd?", "yes")
    assert (row["score"], row["blind"], row["blind_score"]) == (1.0, "no", 0.0)
    assert (row["majority"], row["majority_score"]) == ("what", pytest.approx(0.9))
    assert row["answers"] == ["yes"] * 7 + ["what"] * 3
    assert result.files["answers"][3] == {"question_id": 103, "answer": "yes"}
    assert result.files["accuracy"] == {
        "overall": 100.0,
        "perAnswerType": {"other": 100.0, "yes/no": 100.0},
        "perQuestionType": {"what": 100.0, "is it": 100.0},
    }
    json.dumps([result.rows, result.files])


def test_the_version_of_the_accuracy_matters() -> None:
    class Wordy(Answerer):
        def predict_answers(self, samples: dict[str, Any], **_: Any) -> list[str]:
            return ["The Red"] * len(samples["text_input"])

    class Agreed(Questions):
        def annotation(self, i: int) -> dict[str, Any]:
            return {**super().annotation(i), "answers": ["red"] * 10}

    assert evaluate(Agreed(), Wordy()).metrics["acc"] == 0.0
    assert evaluate(Agreed(), Wordy(), vqa_accuracy="2017").metrics["acc"] == 100.0


def test_a_split_without_answers_gives_the_servers_file_alone() -> None:
    result = evaluate(Questions(answered=False), baselines=["majority"])
    assert result.metrics == {}
    assert len(result.files["answers"]) == len(result.rows) == 12


def test_ranking_takes_the_given_list_or_the_datasets(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text('["from", "file"]', "utf-8")
    for given, expected in (
        (None, Questions.answer_list), (["x"], ["x"]), (str(file), ["from", "file"])
    ):  # fmt: skip
        model = Answerer()
        evaluate(model=model, inference_method="rank", answer_list=given)
        assert model.asked[0][2]["answer_list"] == expected
        assert model.asked[0][2]["inference_method"] == "rank"
    without = Questions()
    without.answer_list = None
    with pytest.raises(ConfigError, match=r"run.answer_list: 'rank' needs a list.*saw nothing"):
        evaluate(without, inference_method="rank")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baselines": ["blnd"]}, r"run.baselines: 'blnd' is unknown. Did you mean 'blind'"),
        ({"inference_method": "ranks"}, "run.inference_method: 'ranks'"),
        ({"vqa_accuracy": "2020"}, "run.vqa_accuracy: '2020'"),
        ({"prompt": "Question?"}, r"run.prompt: the question's place \{\}"),
        ({"min_len": 11}, "run.min_len: expected 0 to 10, saw 11"),
        ({"num_beams": 0}, "run.num_beams: expected 1 or more"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**options)


def test_what_a_baseline_or_the_model_lacks_is_said() -> None:
    class Silent(Questions):
        true_caption = property()  # as if it had none

    with pytest.raises(ConfigError, match="'caption' needs true captions, which questions/val"):
        evaluate(Silent(), baselines=["caption"])
    with pytest.raises(ConfigError, match="Linear cannot answer questions"):
        evaluate(model=nn.Linear(1, 1))
    with pytest.raises(DataError, match="questions/val holds no records"):
        task().evaluate(Answerer(), Questions(0), EvalContext())


def test_the_table_shows_them_side_by_side() -> None:
    metrics = evaluate(baselines=["blind", "other_image"]).metrics
    table = task().summary({f"q/val/{name}": value for name, value in metrics.items()})
    assert table == [
        ["q/val", "model", "blind", "other image"],
        ["all", "100.0", "41.7", "50.0"],
        ["other", "100.0", "33.3", "100.0"],
        ["yes_no", "100.0", "50.0", "0.0"],
    ]
    assert task().summary({}) == []


def test_examples_show_picture_question_answer_and_truth() -> None:
    shown = task().examples(Answerer(), Questions(), EvalContext(), n=3)
    assert [row["id"] for row in shown] == ["question 100", "question 104", "question 108"]
    assert [row["question"] for row in shown] == ["colour?"] * 3
    assert [row["generated"] for row in shown] == ["red", "blue", "green"]
    assert shown[0]["truth"] == ["red (7)", "what (3)"]
    assert [(row["verdict"], row["score"]) for row in shown] == [("right", "100 %")] * 3
    assert shown[1]["image"] == "2.jpg"
    unknown = task().examples(Answerer(), Questions(answered=False), EvalContext(), n=1)[0]
    assert (unknown["truth"], unknown["verdict"], unknown["score"]) == ([], None, None)


def test_examples_after_an_evaluation_are_right_and_wrong_ones() -> None:
    class Half(Answerer):
        """Wrong about pictures 8 and 9 only."""

        def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
            numbers = samples["image"][:, 0, 0, 0].long().tolist()
            right = super().predict_answers(samples, **options)
            slips = {8: "purple", 9: "nobody"}
            return [slips.get(n, answer) for n, answer in zip(numbers, right, strict=True)]

    tried, data, model = task(), Questions(40), Half()
    before = tried.examples(model, data, EvalContext(), n=6)
    assert {row["verdict"] for row in before} == {"right"}
    tried.evaluate(model, data, EvalContext())
    shown = tried.examples(model, data, EvalContext(), n=6)
    assert sorted(row["verdict"] for row in shown) == ["right"] * 3 + ["wrong"] * 3
    assert [row["image"] for row in shown] == sorted(
        (row["image"] for row in shown), key=lambda name: int(name[:-4])
    )
    other = Questions(40)
    other.split = "test"
    assert {row["verdict"] for row in tried.examples(model, other, EvalContext(), n=6)} == {"right"}


def test_the_monitor_is_the_accuracy() -> None:
    assert task().monitor_for(["vqa"]) == "acc"
    assert task().higher_is_better("q/val/acc")


class Few(Questions):
    """Each question has the first `n` of the answers it had."""

    n = 1

    def annotation(self, i: int) -> dict[str, Any]:
        found = super().annotation(i)
        return {**found, "answers": found["answers"][: self.n]}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_a_right_answer_gets_a_hundred_whatever_the_number_of_annotators(
    n: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(our_logging, "_warned", set())
    data = Few()
    data.n = n
    with caplog.at_level(logging.INFO):
        assert evaluate(data).metrics["acc"] == pytest.approx(100.0)
        evaluate(data)
    said = [r.getMessage() for r in caplog.records if "not ten" in r.getMessage()]
    assert len(said) == 1
    assert f"questions/val: 12 of 12 questions have {n} answers, not ten" in said[0]


def test_ten_answers_need_no_explanation(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(our_logging, "_warned", set())
    with caplog.at_level(logging.INFO):
        evaluate()
    assert "not ten" not in caplog.text


def test_empty_answers_are_answers() -> None:
    class Silent(Answerer):
        def predict_answers(self, samples: dict[str, Any], **_: Any) -> list[str]:
            return [""] * len(samples["text_input"])

    result = evaluate(model=Silent())
    assert result.metrics["acc"] == 0.0
    assert result.files["answers"][0] == {"question_id": 100, "answer": ""}

    class Empty(Questions):
        def annotation(self, i: int) -> dict[str, Any]:
            return {**super().annotation(i), "answers": [""]}

    assert evaluate(Empty(), Silent()).metrics["acc"] == 100.0
    assert task().examples(Silent(), Empty(), EvalContext(), 1)[0]["verdict"] == "right"


@pytest.mark.parametrize("kind", ["vqa", "gqa", "ok_vqa", "aok_vqa"])
def test_any_question_can_be_scored_by_vqa_accuracy_and_nothing_else(kind: str) -> None:
    data = Questions()
    data.evaluation = kind
    assert evaluate(data).metrics["acc"] == 100.0
    data.evaluation = "caption"
    with pytest.raises(ConfigError, match=r"'vqa' cannot evaluate .* scored by 'caption'. It can"):
        evaluate(data)


def test_an_answer_that_is_no_text_is_named() -> None:
    class Odd(Questions):
        def annotation(self, i: int) -> dict[str, Any]:
            return {**super().annotation(i), "answers": [{"answer": 7}] if i == 3 else ["x"]}

    with pytest.raises(DataError, match=r"questions/val question 3: answers\[0\]: expected a text"):
        evaluate(Odd())
