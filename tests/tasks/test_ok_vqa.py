"""Knowledge questions: answers as they are and in their basic form, side by side."""

from __future__ import annotations

from typing import Any

import pytest

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.tasks import ok_vqa
from lavislite.tasks.ok_vqa import OKVQATask
from lavislite.tasks.vqa_config import VQAConfig

from .question_parts import Answerer, Questions


class Knowledge(Questions):
    evaluation = "ok_vqa"

    def annotation(self, i: int) -> dict[str, Any]:
        return {**super().annotation(i), "answers": ["dog", "red"] * 5}


class Plural(Answerer):
    """Two in three answers are in their basic form."""

    def predict_answers(self, samples: dict[str, Any], **_: Any) -> list[str]:
        numbers = samples["image"][:, 0, 0, 0].long().tolist() if "image" in samples else []
        return [["dogs", "dog", "red"][n % 3] for n in numbers] or ["cat"] * len(
            samples["text_input"]
        )


@pytest.fixture
def _basic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ok_vqa, "lemmatize", lambda text: text.removesuffix("s"))


def task(**options: Any) -> OKVQATask:
    cfg = VQAConfig(**options)
    cfg.check()
    return OKVQATask(cfg)


def evaluate(dataset: Any = None, **options: Any) -> EvalResult:
    return task(**options).evaluate(Plural(), dataset or Knowledge(), EvalContext(batch_size=4))


@pytest.mark.usefixtures("_basic")
def test_both_figures_are_always_reported() -> None:
    metrics = evaluate(baselines=["blind"]).metrics
    assert metrics["acc"] == pytest.approx(200 / 3)
    assert metrics["acc_lemmatized"] == pytest.approx(100.0)
    assert metrics["acc_blind_lemmatized"] == metrics["acc_blind"] == 0.0
    table = task().summary({f"d/val/{name}": value for name, value in metrics.items()})
    assert ["lemmatized", "100.0", "0.0"] in table


@pytest.mark.usefixtures("_basic")
def test_rows_and_files_hold_both_answers() -> None:
    result = evaluate()
    assert result.rows[0]["prediction"] == "dogs"
    assert result.rows[0]["prediction_lemmatized"] == "dog"
    assert (result.rows[0]["score"], result.rows[0]["score_lemmatized"]) == (0.0, 1.0)
    assert result.files["answers"][0] == {"question_id": 100, "answer": "dogs"}
    assert result.files["answers_lemmatized"][0] == {"question_id": 100, "answer": "dog"}
    without = evaluate(Questions(answered=False))
    assert without.metrics == {}
    assert set(without.files) == {"answers", "answers_lemmatized"}


def test_the_real_lemmatizer_knows_a_plural() -> None:
    pytest.importorskip("simplemma")
    assert evaluate().metrics["acc_lemmatized"] == pytest.approx(100.0)


def test_a_missing_package_is_said_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: str) -> str:
        raise ImportError("pip install simplemma")

    monkeypatch.setattr(ok_vqa, "lemmatize", missing)
    with pytest.raises(UserError, match=r"Task 'ok_vqa': .*simplemma"):
        task()


@pytest.mark.usefixtures("_basic")
def test_other_questions_are_refused() -> None:
    data = Knowledge()
    data.evaluation = "gqa"
    with pytest.raises(ConfigError, match="Task 'ok_vqa' cannot evaluate questions/val"):
        evaluate(data)
    assert task().default_monitor == "acc"
