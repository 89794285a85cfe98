"""Every family reads image tokens, passes gradients to them and to nothing else, and writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lavislite.common.generation import GenerationOptions
from lavislite.models.language.adapter import HFLanguageModel

from .tiny import CAUSAL, FAMILIES, SEQ2SEQ, build_tiny, random_prefix

PROMPTS = ["a photo of", "Question: how many dogs are running? Answer:", "", "a"]
TARGETS = ["a red cat", "two", "the small table", "red dogs running on the table"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny(tmp_path_factory.mktemp("lm"), request.param)


def full_logits_nll(language: Any, row: int, prefix: torch.Tensor) -> torch.Tensor:
    """The loss of one row from all its logits, put together by hand."""
    codec, prefix = language.codec, prefix[row : row + 1]
    prompt, target = PROMPTS[row], TARGETS[row]
    if language.kind == "seq2seq":
        read = [*codec.leading, *codec.plain(prompt), *codec.trailing]
        labels = torch.tensor([[*codec.leading, *codec.plain(target), *codec.trailing]])
        embeds = torch.cat([prefix, language.embed(torch.tensor([read]))], 1)
        start = torch.full((1, 1), language.decoder_start)
        logits = language.model(
            inputs_embeds=embeds, decoder_input_ids=torch.cat([start, labels[:, :-1]], 1)
        ).logits[0]
        return F.cross_entropy(logits, labels[0], reduction="sum")
    before = [*codec.leading, *codec.plain(prompt)]
    after = [*codec.plain(f" {target}" if prompt else target), codec.end]
    text = torch.tensor([before + after])
    logits = language.model(inputs_embeds=torch.cat([prefix, language.embed(text)], 1)).logits[0]
    return F.cross_entropy(logits[-len(after) - 1 : -1], torch.tensor(after), reduction="sum")


def test_loss_of_target_rows_is_the_loss_from_all_logits(language: HFLanguageModel) -> None:
    prefix = random_prefix(language, 4)
    nll = language.nll(prefix, PROMPTS, TARGETS)
    expected = torch.stack([full_logits_nll(language, row, prefix) for row in range(4)])
    torch.testing.assert_close(nll.total, expected, **CLOSE)
    assert nll.count.min() >= 2


def test_only_target_rows_meet_the_head(language: HFLanguageModel) -> None:
    seen = []
    head = language.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, output: seen.append(output.shape[:2]))
    count = language.nll(random_prefix(language, 4), PROMPTS, TARGETS).count.sum()
    handle.remove()
    assert seen == [(1, count)]


def test_gradients_reach_the_prefix_and_nothing_else(language: HFLanguageModel) -> None:
    prefix = random_prefix(language, 4).requires_grad_()
    language.nll(prefix, PROMPTS, TARGETS).total.sum().backward()
    assert prefix.grad is not None
    assert (prefix.grad.abs().sum((1, 2)) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in language.parameters())


def test_a_batch_equals_its_rows_one_by_one(language: HFLanguageModel) -> None:
    prefix = random_prefix(language, 4)
    mask = torch.ones(4, 3)
    mask[1, 0] = mask[3, 2] = 0
    nll = language.nll(prefix, PROMPTS, TARGETS, prefix_mask=mask)
    for row in range(4):
        only = prefix[row : row + 1, mask[row].bool()]
        single = language.nll(only, PROMPTS[row : row + 1], TARGETS[row : row + 1])
        torch.testing.assert_close(nll.total[row], single.total[0], **CLOSE)
        assert nll.count[row] == single.count[0]


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(num_beams=1, max_new_tokens=8),
        GenerationOptions(num_beams=5, max_new_tokens=8, length_penalty=-1.0),
        GenerationOptions(num_beams=3, max_new_tokens=8, repetition_penalty=1.5),
        GenerationOptions(num_beams=3, max_new_tokens=8, min_new_tokens=4, num_captions=2),
        GenerationOptions(num_beams=3, max_new_tokens=8, lavis_lengths=True),
    ],
)
def test_a_batch_writes_what_its_rows_write(
    language: HFLanguageModel, options: GenerationOptions
) -> None:
    prefix = random_prefix(language, 4)
    texts = language.generate(prefix, PROMPTS, options)
    assert len(texts) == 4 * options.num_captions
    singles = [
        language.generate(prefix[row : row + 1], PROMPTS[row : row + 1], options)
        for row in range(4)
    ]
    assert texts == [text for row in singles for text in row]
    assert any(texts)
    other = language.generate(-prefix, PROMPTS, options)
    assert other != texts  # the prefix is read


@pytest.mark.parametrize("lavis_lengths", [False, True])
def test_sampling_draws_several_captions(language: HFLanguageModel, lavis_lengths: bool) -> None:
    options = GenerationOptions(
        use_nucleus_sampling=True, num_captions=6, max_new_tokens=8, lavis_lengths=lavis_lengths
    )
    texts = language.generate(random_prefix(language, 2), PROMPTS[:2], options)
    assert len(texts) == 12
    assert len(set(texts[:6])) > 1


def test_without_an_image_the_model_is_blind_but_works(language: HFLanguageModel) -> None:
    nothing = random_prefix(language, 4, n=0)
    nll = language.nll(nothing, PROMPTS, TARGETS)
    assert nll.total.isfinite().all()
    assert (nll.count >= 2).all()
    options = GenerationOptions(num_beams=2, max_new_tokens=4)
    assert len(language.generate(nothing, PROMPTS, options)) == 4


def test_the_batch_order_of_captions_is_by_image(language: HFLanguageModel) -> None:
    prefix = random_prefix(language, 2)
    options = GenerationOptions(num_beams=4, num_captions=4, max_new_tokens=6)
    four = language.generate(prefix, PROMPTS[:2], options)
    one = language.generate(prefix, PROMPTS[:2], GenerationOptions(num_beams=4, max_new_tokens=6))
    assert [four[0], four[4]] == one


def test_every_family_of_the_table_is_covered() -> None:
    assert set(CAUSAL).isdisjoint(SEQ2SEQ)
    assert {"opt", "gpt2", "gpt_neox", "llama", "qwen3", "gemma3", "mistral"} <= set(CAUSAL)
    assert {"t5", "bart"} <= set(SEQ2SEQ)
