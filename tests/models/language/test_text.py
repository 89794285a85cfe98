"""Prompts and targets become the tokens that the joint text would have; chats become prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.chat import render
from lavislite.models.language.packing import pack, pad_right
from lavislite.models.language.text import TextCodec

from .tiny import build_tiny, random_prefix, tiny_tokenizer


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny(tmp_path_factory.mktemp("opt"), "opt")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny(tmp_path_factory.mktemp("t5"), "t5")


# ---- tokens


@pytest.mark.parametrize("prompt", ["a photo of", "a photo of ", "a photo of  "])
def test_the_space_between_prompt_and_target_belongs_to_the_target(prompt: str) -> None:
    codec = TextCodec(tiny_tokenizer(), None, "tiny")
    before, after = codec.split(prompt, "a red cat")
    assert codec.plain(before) + codec.plain(after) == codec.plain("a photo of a red cat")


def test_no_space_after_a_line_break_or_without_a_prompt() -> None:
    codec = TextCodec(tiny_tokenizer(), None, "tiny")
    assert codec.split("Answer:\n", "two") == ("Answer:\n", "two")
    assert codec.split("", "two") == ("", "two")
    assert codec.split("Answer:", " two") == ("Answer:", " two")


def test_what_a_tokenizer_puts_around_a_text_is_found() -> None:
    codec = TextCodec(tiny_tokenizer("<s> $A </s>"), None, "tiny")
    assert (codec.leading, codec.trailing, codec.end) == ([1], [2], 2)
    assert codec.begin("<s>a") == []  # a chat template brings its own
    assert codec.plain("") == []


def test_decoding_stops_at_the_first_end_and_strips() -> None:
    codec = TextCodec(tiny_tokenizer(), "\n", "tiny")
    ids = [*codec.plain(" a red"), *codec.plain("\n"), *codec.plain("cat")]
    assert codec.decode(torch.tensor([ids])) == ["a red"]
    assert codec.stop == [codec.plain("\n")[0], 2]


def test_packing_pads_one_end_only() -> None:
    ids, mask = pad_right([[5], [6, 7]], 0)
    prefix, text = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), ids[..., None].float()
    real = torch.tensor([[1, 0], [1, 1]])
    right = pack(prefix, text, mask, real)
    assert right.embeds[..., 0].tolist()[1] == [3, 4, 6, 7]
    assert right.embeds[0, :2, 0].tolist() == [1, 5]
    assert right.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert right.start.tolist() == [1, 2]
    left = pack(prefix, text, mask, real, left=True)
    assert left.embeds[0, 2:, 0].tolist() == [1, 5]
    assert left.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


# ---- lengths


def test_a_long_target_is_cut_with_its_prompt(opt: Any) -> None:
    prefix, long = random_prefix(opt, 1), "a red cat sitting on the small table " * 3
    prompt = len(opt.codec.plain("a photo of"))
    nll = opt.nll(prefix, ["a photo of"], [long], max_txt_len=12)
    assert nll.count.item() == 12 - 1 - prompt
    nll = opt.nll(prefix, ["a photo of"], [long], max_txt_len=12, max_output_txt_len=10)
    assert nll.count.item() == 10
    assert opt.nll(prefix, [long], ["two"], max_txt_len=12).count.item() == 1
    assert opt.nll(prefix, [""], ["two " * 200]).count.item() < opt.context_length


def test_a_cut_text_of_an_encoder_keeps_its_end(t5: Any) -> None:
    prefix, long = random_prefix(t5, 1), "a red cat sitting on the small table"
    assert t5.nll(prefix, [long], [long], max_txt_len=6).count.item() == 6
    assert t5.texts.answers([long], 6)[0][-1] == t5.codec.end
    assert t5.nll(prefix, [long], [long], max_txt_len=6, max_output_txt_len=4).count.item() == 4


def test_skip_overrides_what_counts(opt: Any) -> None:
    prefix = random_prefix(opt, 1)
    text = len(opt.codec.plain("a photo of a cat")) + 2
    for skip in (0, 3):
        nll = opt.nll(prefix, ["a photo of"], ["a cat"], skip=skip)
        assert nll.count.item() == text - skip
    whole = opt.nll(prefix, [""], ["a photo of a cat"], skip=0).total
    torch.testing.assert_close(opt.nll(prefix, ["a photo of"], ["a cat"], skip=0).total, whole)


def test_a_prompt_longer_than_the_context(opt: Any) -> None:
    prefix, prompt = random_prefix(opt, 1), "how many dogs? " * 60
    with pytest.raises(UserError, match="prompt is too long .* the model reads 96"):
        opt.generate(prefix, [prompt], GenerationOptions())
    with pytest.raises(UserError, match="prompt is too long"):
        opt.nll(prefix, [prompt], ["two"])
    assert opt.nll(prefix, [prompt], ["two"], max_txt_len=20).count.item() == 1
    assert len(opt.generate(prefix, [prompt], GenerationOptions(), max_txt_len=20)) == 1


def test_generation_ends_where_the_context_ends(opt: Any) -> None:
    options = GenerationOptions(num_beams=1, max_new_tokens=500, min_new_tokens=400)
    assert opt.generate(random_prefix(opt, 1), ["a photo of"], options)


def test_wrong_batches_are_refused(opt: Any) -> None:
    with pytest.raises(UserError, match="Expected a list of 2 texts, one per row, got 1 texts"):
        opt.nll(random_prefix(opt, 2), ["a"], ["b", "c"])
    with pytest.raises(UserError, match="got a single string"):
        opt.generate(random_prefix(opt, 1), "a", GenerationOptions())
    with pytest.raises(UserError, match=r"expects \[B, n, 32\], got \[1, 3, 5\]"):
        opt.nll(torch.zeros(1, 3, 5), ["a"], ["b"])
    with pytest.raises(ConfigError, match="num_captions"):
        opt.generate(random_prefix(opt, 1), ["a"], GenerationOptions(num_captions=9))


# ---- chat

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Which colour?"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_without_a_template_is_questions_and_answers() -> None:
    expected = "Be brief. Question: What is it? Answer: A cat. Question: Which colour? Answer:"
    assert render(tiny_tokenizer(), TALK) == expected


def test_a_chat_follows_the_template_and_begins_once() -> None:
    tokenizer = tiny_tokenizer("<s> $A")
    tokenizer.chat_template = TEMPLATE
    text = render(tokenizer, TALK)
    assert text.startswith("<s>[system] Be brief.\n")
    assert text.endswith("[assistant]")
    codec = TextCodec(tokenizer, None, "tiny")
    assert [*codec.begin(text), *codec.plain(text)].count(1) == 1


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "the last message must be the user's"),
        (TALK[:3], "the last message must be the user's"),
        ([{"role": "usr", "content": "a"}], "unknown role 'usr'. Did you mean 'user'"),
        ([{"role": "user", "content": 3}], "expected a text as content, got int"),
    ],
)
def test_wrong_messages_are_named(messages: list[Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        render(tiny_tokenizer(), messages)


def test_a_template_that_refuses_says_why() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
    with pytest.raises(UserError, match="no system message, please"):
        render(tokenizer, TALK)


def test_a_chat_is_answered(opt: Any, tmp_path: Path) -> None:
    prompt = render(opt.tokenizer, TALK)
    options = GenerationOptions(num_beams=1, max_new_tokens=4)
    assert len(opt.generate(random_prefix(opt, 1), [prompt], options)) == 1
