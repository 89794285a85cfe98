"""Ranking and answering by a whole stage-2 model, and by a language model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig
from lavislite.models.language.base import NLL

from .reference import tiny_config, tiny_eva
from .reference_stage2 import reference_stage2, stage2_tensors

IMAGE = stage2_tensors("opt", "generate_tensors")["image"]
QUESTIONS = ["is it red", "what is the old man eating", "how many dogs", "a"]
LISTS = [["red", "two dogs", "no"], ["pizza"], ["no", "pizza on the beach"], ["a", "red"]]


@pytest.fixture(scope="module", params=["opt", "t5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blip2LLM:
    return reference_stage2(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("answers", [LISTS[0], LISTS])
@pytest.mark.parametrize("at_once", [1, 128])
def test_ranking_prefers_what_whole_pairs_prefer(
    model: Blip2LLM, answers: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {"image": IMAGE, "text_input": QUESTIONS}
    how: dict[str, Any] = {
        "inference_method": "rank",
        "answer_list": answers,
        "num_ans_candidates": at_once,
    }
    chosen = model.predict_answers(samples, **how)
    monkeypatch.setitem(vars(model.language), "branches", False)
    assert chosen == model.predict_answers(samples, **how)


def test_ranking_reads_each_question_once(model: Blip2LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a whole pair was read")

    monkeypatch.setattr(model.language, "nll", refuse)
    samples = {"image": IMAGE, "text_input": QUESTIONS}
    assert model.predict_answers(samples, inference_method="rank", answer_list=LISTS)


@pytest.mark.parametrize("beams", [1, 3])
def test_many_questions_about_one_picture(model: Blip2LLM, beams: int) -> None:
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 6}
    one = IMAGE[:1]
    together = model.generate({"image": one.expand(4, -1, -1, -1), "prompt": QUESTIONS}, **options)
    apart = [model.generate({"image": one, "prompt": [q]}, **options)[0] for q in QUESTIONS]
    assert together == apart


class Own(torch.nn.Module):
    """A language model with `nll` alone: it prefers the answer that is as long as its prompt."""

    kind, hidden_size, context_length, tokenizer = "causal", 6, None, None

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[int] = []

    def nll(self, prefix: Any, prompts: list[str], targets: list[str], **_: Any) -> NLL:
        self.pairs.append(len(prefix))
        gaps = [abs(len(p) - len(t)) for p, t in zip(prompts, targets, strict=True)]
        return NLL(torch.tensor(gaps).float(), torch.ones(len(gaps), dtype=torch.long))


def test_a_language_model_of_ones_own_ranks(tmp_path: Path) -> None:
    cfg = Blip2LLMConfig(qformer=tiny_config().qformer, num_query_tokens=8)
    own = Own()
    model = Blip2LLM.from_config(cfg, vision=tiny_eva(), language=own)
    chosen = model.predict_answers(
        {"image": IMAGE[:2], "text_input": ["1234", "12"]},
        inference_method="rank",
        answer_list=["abc", "abcd", "ab"],
        num_ans_candidates=4,
    )
    assert chosen == ["abcd", "ab"]
    assert own.pairs == [4, 2]
