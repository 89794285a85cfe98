"""Ranking gives the scores of whole pairs, and reads prompts and beginnings of answers once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.errors import UserError
from lavislite.models.language.rank import Tree, rank_by_nll

from .tiny import FAMILIES, build_tiny, random_prefix

PROMPTS = ["Question: how many dogs? Answer:", "a photo of ", ""]
ANSWERS = ["red", "red cat", "red cat sitting", "two", "two dogs", "no", "a", "red"]
LISTS = [ANSWERS, ["no"], ["small table", "small", "the small table"]]


@pytest.fixture(scope="module", params=FAMILIES)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny(tmp_path_factory.mktemp("lm"), request.param)


@pytest.mark.parametrize("answers", [[ANSWERS] * 3, LISTS])
@pytest.mark.parametrize("at_once", [128, 3])
def test_scores_are_those_of_whole_pairs(
    language: Any, answers: list[list[str]], at_once: int
) -> None:
    prefix, real = random_prefix(language, 3), torch.ones(3, 3)
    real[1, 1:] = 0
    for mask in (None, real):
        ours = language.rank(prefix, PROMPTS, answers, prefix_mask=mask, at_once=at_once)
        whole = rank_by_nll(language, prefix, PROMPTS, answers, prefix_mask=mask)
        for one, other in zip(ours, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_prompts_of_one_length_need_no_mask(language: Any) -> None:
    prefix = random_prefix(language, 2)
    ours = language.rank(prefix, ["a photo of"] * 2, [ANSWERS, LISTS[2]])
    whole = rank_by_nll(language, prefix, ["a photo of"] * 2, [ANSWERS, LISTS[2]])
    for one, other in zip(ours, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_questions_about_one_picture(language: Any) -> None:
    prefix = random_prefix(language, 1).expand(3, -1, -1)
    prompts = ["Question: how many dogs? Answer:", "a photo of", "red"]
    ours = language.rank(prefix, prompts, LISTS)
    for one, other in zip(ours, rank_by_nll(language, prefix, prompts, LISTS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_every_beginning_is_read_once(language: Any) -> None:
    read: list[list[int]] = []

    def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        key = "decoder_input_ids" if language.kind == "seq2seq" else "input_ids"
        if inputs.get(key) is not None:
            read.append(inputs[key].flatten().tolist())

    handle = language.model.register_forward_pre_hook(watch, with_kwargs=True)
    language.rank(random_prefix(language, 1), ["a photo of"], [ANSWERS])
    handle.remove()
    _, ((*ids,),) = language.texts.choices(["a photo of"], [ANSWERS], 3)
    beginnings = {answer[:end] for answer in ids for end in range(1, len(answer))}
    steps = read[1:] if language.kind == "seq2seq" else read  # the first is the start token
    assert sum(map(len, steps)) == len(beginnings)
    assert len(steps) == max(map(len, ids)) - 1


def test_a_model_that_cannot_branch_compares_whole_pairs(
    language: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = random_prefix(language, 3)
    ours = language.rank(prefix, PROMPTS, LISTS)
    monkeypatch.setitem(vars(language), "branches", False)
    for one, other in zip(ours, language.rank(prefix, PROMPTS, LISTS, at_once=2), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_answers_end_with_the_context(tmp_path: Path) -> None:
    opt = build_tiny(tmp_path, "opt")
    prefix, prompt = random_prefix(opt, 1, n=40), "a red cat " * 10
    long = ["dogs running on the table " * 9, "two"]
    (ours,) = opt.rank(prefix, [prompt], [long])
    (whole,) = rank_by_nll(opt, prefix, [prompt], [long])
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="prompt is too long"):
        opt.rank(prefix, [prompt * 9], [long])
    with pytest.raises(UserError, match="Expected a list of 1 texts"):
        opt.rank(prefix, [prompt] * 2, [long] * 2)


def test_the_tree_of_answers() -> None:
    tree = Tree.of([[(5, 6, 9), (5, 9), (7, 9)], [(5, 9)]])
    assert [level.roots for level in tree.levels] == [[0, 1], [0, 0, 1], [0]]
    one = tree.levels[1]
    assert (one.tokens.tolist()[0], one.inner) == (5, 1)  # only "5" of the first goes on
    assert sorted(one.tokens.tolist()) == [5, 5, 7]
    assert tree.levels[2].parents.tolist() == [0]
    assert tree.counts == [3, 1]
    assert sum(level.wanted.shape[1] for level in tree.levels) == 3 + 2 + 2 + 2
