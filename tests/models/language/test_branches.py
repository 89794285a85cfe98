"""Our own decoding writes what the library's writes, and reads image and prompt once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.generation import GenerationOptions
from lavislite.models.language.branches import ROOM, can_branch, can_write

from .tiny import FAMILIES, build_tiny, random_prefix

PROMPTS = ["a photo of", "Question: how many dogs are running? Answer:", "", "a"]
OPTIONS = {
    "greedy": GenerationOptions(num_beams=1, max_new_tokens=8),
    "greedy_penalties": GenerationOptions(
        num_beams=1, max_new_tokens=9, min_new_tokens=5, repetition_penalty=1.4
    ),
    "beams": GenerationOptions(num_beams=5, max_new_tokens=8),
    "short_beams": GenerationOptions(num_beams=4, max_new_tokens=8, length_penalty=-1.0),
    "several": GenerationOptions(
        num_beams=4, max_new_tokens=9, min_new_tokens=3, length_penalty=2.0, num_captions=3
    ),
    "no_repeats": GenerationOptions(
        num_beams=3, max_new_tokens=9, no_repeat_ngram_size=2, repetition_penalty=1.3
    ),
    "one_token": GenerationOptions(num_beams=2, max_new_tokens=1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    language = build_tiny(tmp_path_factory.mktemp("lm"), request.param)
    with torch.no_grad():  # texts of different lengths: the end is likelier than chance
        language.model.get_output_embeddings().weight[language.codec.end] *= 1.5
    return language


def library(language: Any, patch: pytest.MonkeyPatch) -> None:
    """From now on the library's own generation writes."""
    patch.setitem(vars(language), "branches", False)


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_those_of_the_library(
    language: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, found = random_prefix(language, 4), []
    monkeypatch.setattr(language.codec, "decode", lambda ids: found.append(ids.tolist()))
    real = torch.ones(4, 3)
    real[2, 1:] = 0  # a sample with fewer pictures
    for mask in (None, real):
        language.generate(prefix, PROMPTS, OPTIONS[name], prefix_mask=mask)
    # prompts of one length need no mask at all
    language.generate(prefix, ["a photo of"] * 4, OPTIONS[name])
    library(language, monkeypatch)
    for mask in (None, real):
        language.generate(prefix, PROMPTS, OPTIONS[name], prefix_mask=mask)
    language.generate(prefix, ["a photo of"] * 4, OPTIONS[name])
    ours, theirs = found[:3], found[3:]
    for mine, expected in zip(ours, theirs, strict=True):
        assert [texts(language, row) for row in mine] == [texts(language, r) for r in expected]


def texts(language: Any, ids: list[int]) -> list[int]:
    """Up to the first end: the padding behind it may be longer."""
    ends = [i for i, token in enumerate(ids) if token in language.stop_ids]
    return ids[: ends[0] + 1] if ends else ids


def test_the_nucleus_of_one_token_is_greedy(language: Any) -> None:
    prefix = random_prefix(language, 2)
    narrow = {"use_nucleus_sampling": True, "top_p": 0.0, "num_captions": 2, "max_new_tokens": 8}
    drawn = language.generate(prefix, PROMPTS[:2], GenerationOptions(**narrow))
    one = language.generate(prefix, PROMPTS[:2], OPTIONS["greedy"])
    assert drawn == [one[0], one[0], one[1], one[1]]


@pytest.mark.parametrize("options", [OPTIONS["beams"], OPTIONS["greedy"]])
def test_image_and_prompt_are_read_once(language: Any, options: GenerationOptions) -> None:
    seen: list[tuple[int, ...]] = []
    head = language.model.get_output_embeddings()
    reader = language.model.get_encoder() if language.kind == "seq2seq" else language.model
    rows = {"inputs_embeds": [], "input_ids": []}  # type: ignore[var-annotated]

    def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        for key, found in rows.items():
            if inputs.get(key) is not None:
                found.append(len(inputs[key]))

    handles = [
        head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[:2]))),
        reader.register_forward_pre_hook(watch, with_kwargs=True),
    ]
    language.generate(random_prefix(language, 4), PROMPTS, options)
    for handle in handles:
        handle.remove()
    assert rows["inputs_embeds"] == [4]
    assert set(rows["input_ids"]) <= {4 * options.num_beams}
    assert seen[0] == (1, 4)  # of the prompts, only the last rows meet the head
    assert set(seen[1:]) == {(4 * options.num_beams, 1)}


@pytest.mark.parametrize("name", ["greedy", "several"])
def test_a_picture_of_many_questions_is_read_once(
    language: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, read = random_prefix(language, 2)[[0, 0, 0, 1]], []
    prompts = ["a photo of", "Question: how many dogs are running? Answer:", "red", "a"]
    handle = language.model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs.get("inputs_embeds")), with_kwargs=True
    )
    ours = language.generate(prefix, prompts, OPTIONS[name])
    handle.remove()
    sizes = [tuple(x.shape[:2]) for x in read if x is not None]
    if language.kind == "causal":
        longest = len(language.texts.prompts(prompts[1:2], 3)[0])
        assert sizes == ([(2, 3), (4, longest)] if language.gaps else [(4, 3 + longest)])
    library(language, monkeypatch)
    assert ours == language.generate(prefix, prompts, OPTIONS[name])


def test_who_reads_past_padding(language: Any) -> None:
    windows = bool(getattr(language.model.config, "sliding_window", None))
    assert (language.kind != "causal") or language.gaps != windows


def test_a_long_text_outgrows_its_room(language: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = GenerationOptions(num_beams=2, max_new_tokens=ROOM + 9, min_new_tokens=ROOM + 5)
    prefix = random_prefix(language, 2)
    ours = language.generate(prefix, ["a", "a photo of"], long)
    library(language, monkeypatch)
    assert ours == language.generate(prefix, ["a", "a photo of"], long)


def test_several_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = build_tiny(tmp_path, "llama")
    prefix, found = random_prefix(language, 4), []
    monkeypatch.setattr(language.codec, "decode", lambda ids: ids.tolist())
    options = GenerationOptions(num_beams=3, max_new_tokens=10, num_captions=2)
    plain = language.generate(prefix, PROMPTS, options)
    language.codec.stop.append(plain[0][4])
    for by_library in (False, True):
        if by_library:
            library(language, monkeypatch)
        for each in (options, OPTIONS["greedy"]):
            ids = language.generate(prefix, PROMPTS, each)
            found.append([texts(language, row) for row in ids])
    assert found[:2] == found[2:]
    assert found[0] != [row[: row.index(2) + 1] if 2 in row else row for row in plain]


# ---- who can


def test_who_can_branch(tmp_path: Path) -> None:
    import transformers

    tiny: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    recurrent = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    own_rules = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**tiny, intermediate_size=16, pad_token_id=0)
    )
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny, intermediate_size=16))
    assert [can_branch(m) for m in (recurrent, own_rules, plain)] == [False, False, True]
    assert can_write(plain)
    plain.generation_config.temperature = 0.6  # decided by each call
    assert can_write(plain)
    plain.generation_config.suppress_tokens = [3]
    assert not can_write(plain)

    class Own(transformers.LlamaForCausalLM):
        """Code from elsewhere may keep any state."""

    assert not can_branch(Own(plain.config))


def test_a_model_with_wishes_of_its_own_is_left_to_the_library(tmp_path: Path) -> None:
    language = build_tiny(tmp_path, "bart")
    language.model.generation_config.forced_eos_token_id = 2
    assert not can_write(language.model)
    prefix = random_prefix(language, 1)
    texts = language.generate(prefix, ["a"], GenerationOptions(num_beams=2, max_new_tokens=5))
    assert len(texts) == 1
