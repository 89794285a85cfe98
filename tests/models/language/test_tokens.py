"""Tokens made apart from the weights: what a worker makes is what the model would have made."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.errors import UserError
from lavislite.models.language.packing import pad_right
from lavislite.models.language.text import TextCodec

from .tiny import build_tiny, random_prefix

PROMPTS = ["a photo of", "Question: how many dogs are running? Answer:", "", "a photo of"]
TARGETS = ["a red cat", "two", "the small table", "red dogs running on the table"]
LIMITS: list[dict[str, Any]] = [
    {},
    {"max_txt_len": 9},
    {"max_txt_len": 9, "max_output_txt_len": 4},
    {"skip": 2},
]


@pytest.fixture(scope="module", params=["opt", "gpt2", "t5", "bart"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny(tmp_path_factory.mktemp("lm"), request.param)


@pytest.mark.parametrize("limits", LIMITS)
def test_tokens_from_a_worker_give_the_same_loss(language: Any, limits: dict[str, Any]) -> None:
    prefix = random_prefix(language, 4)
    worker = pickle.loads(pickle.dumps(language.texts))
    tokens = pickle.loads(pickle.dumps(worker.tokenise(PROMPTS, TARGETS, 3, **limits)))
    direct = language.nll(prefix, PROMPTS, TARGETS, **limits)
    ready = language.nll(prefix, (), (), tokens=tokens)
    assert torch.equal(ready.total, direct.total)
    assert torch.equal(ready.count, direct.count)


def test_the_tokeniser_has_no_weights(language: Any) -> None:
    assert len(pickle.dumps(language.texts)) < 100_000
    assert not any(isinstance(x, torch.nn.Module) for x in vars(language.texts).values())


@pytest.mark.parametrize("limits", LIMITS)
def test_padding_for_few_shapes_counts_for_nothing(
    language: Any, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = random_prefix(language, 4)
    plain = language.nll(prefix, PROMPTS, TARGETS, **limits)
    monkeypatch.setattr(language.texts, "pad_to_multiple", 16)
    tokens = language.texts.tokenise(PROMPTS, TARGETS, 3, **limits)
    assert all(x.shape[1] % 16 == 0 for x in (tokens.ids, tokens.mask, tokens.written))
    assert len(tokens.targets) % 16 == len(tokens.counts) % 16 == 0
    assert tokens.counts.sum() == plain.count.sum()
    padded = language.nll(prefix, (), (), tokens=tokens)
    torch.testing.assert_close(padded.total, plain.total, rtol=1e-5, atol=1e-5)
    assert torch.equal(padded.count, plain.count)


def test_padding_stays_inside_the_context(tmp_path: Path) -> None:
    gpt2 = build_tiny(tmp_path, "gpt2")  # its positions are a table of 96 rows
    gpt2.texts.pad_to_multiple = 64
    nll = gpt2.nll(random_prefix(gpt2, 1), ["a red cat " * 12], ["two"])
    assert nll.total.isfinite().all()


def test_the_tokenizer_is_called_once(language: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    codec = TextCodec(language.tokenizer, None, "tiny")
    tokenizer = language.tokenizer
    monkeypatch.setattr(codec, "tokenizer", lambda *a, **k: calls.append(a) or tokenizer(*a, **k))
    texts = ["a red cat", "", "two", "a red cat"]
    assert codec.plain_all(texts) == [language.codec.plain(text) for text in texts]
    assert [len(texts) for (texts,) in calls] == [2]
    assert codec.plain_all([]) == codec.plain_all([]) == []


def test_tokens_of_another_batch_are_refused(language: Any) -> None:
    tokens = language.texts.tokenise(PROMPTS, TARGETS, 3)
    with pytest.raises(UserError, match="Expected tokens of 2 rows, got 4"):
        language.nll(random_prefix(language, 2), (), (), tokens=tokens)
    if language.context_length is not None:
        with pytest.raises(UserError, match=r"made for a shorter prefix.* reads 96 in all"):
            language.nll(random_prefix(language, 4, n=95), (), (), tokens=tokens)
    with pytest.raises(UserError, match="Got 4 prompts for 3 targets"):
        language.texts.tokenise(PROMPTS, TARGETS[:3], 3)


def test_rows_are_padded_to_a_width() -> None:
    ids, mask = pad_right([[5], [], [6, 7]], 9, 4)
    assert ids.tolist() == [[5, 9, 9, 9], [9, 9, 9, 9], [6, 7, 9, 9]]
    assert mask.sum(1).tolist() == [1, 0, 2]
    assert pad_right([[], []], 9)[0].shape == (2, 0)


def test_tokens_travel_together(language: Any) -> None:
    tokens = language.texts.tokenise(PROMPTS, TARGETS, 3)
    moved = tokens.to("meta")
    assert {x.device.type for x in vars(moved).values()} == {"meta"}
    assert len(moved) == 4
