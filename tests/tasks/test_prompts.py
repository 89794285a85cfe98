"""One object says how a task asks, wherever it asks."""

from __future__ import annotations

import pytest

from lavislite.common.errors import ConfigError
from lavislite.tasks.prompts import CaptionPrompt, QuestionPrompt


def test_a_question_stands_in_its_prompt_and_by_itself() -> None:
    samples = {"text_input": ["what {}?", "why?"], "image": 1, "text_output": ["a", "b"]}
    asked = QuestionPrompt("Q: {} A:").samples(samples)
    assert asked == {
        "text_input": ["Q: what {}? A:", "Q: why? A:"],
        "question": ["what {}?", "why?"],
        "image": 1,
        "text_output": ["a", "b"],
    }
    assert "question" not in samples
    told = QuestionPrompt("Q: {} A:").samples(samples, ["a cat.", "a dog."])
    assert told["text_input"][1] == "a dog. Q: why? A:"
    assert told["question"] == asked["question"]
    assert QuestionPrompt().samples(samples)["text_input"] == samples["text_input"]


@pytest.mark.parametrize("template", ["Question?", "{} or {}"])
def test_the_question_has_one_place(template: str) -> None:
    with pytest.raises(ConfigError, match=r"run.prompt: the question's place \{\} is needed once"):
        QuestionPrompt(template).check("run.prompt")
    QuestionPrompt("").check("run.prompt")
    QuestionPrompt("a {} b").check("run.prompt")


def test_captions_begin_in_training_as_they_do_when_written() -> None:
    assert CaptionPrompt("a photo of").samples({"x": 1}) == {"x": 1, "prompt": "a photo of"}
    assert CaptionPrompt("a photo of").options() == {"prompt": "a photo of"}
    assert CaptionPrompt("").options() == {"prompt": ""}
    assert CaptionPrompt().samples({"x": 1}) == {"x": 1}
    assert CaptionPrompt().options() == {}
