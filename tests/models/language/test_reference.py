"""Losses, and texts for every recorded call, equal those of the original with its tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavislite.common.generation import GenerationOptions

from .reference import QUERIES, recorded, reference_language, tensors

CALLS = [
    (kind, call, key)
    for kind in ("opt", "t5")
    for call in ("generate", "predict_answers")
    for key in recorded(kind)[call]
]


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: reference_language(kind, tmp_path_factory.mktemp(kind)) for kind in ("opt", "t5")}


def options_of(kwargs: dict[str, Any]) -> GenerationOptions:
    """What the original passed on; its `max_length` counts the start token."""
    longest = kwargs.get("max_new_tokens") or kwargs["max_length"] - 1
    return GenerationOptions(
        max_new_tokens=longest,
        min_new_tokens=kwargs["min_length"],
        num_beams=kwargs["num_beams"],
        length_penalty=kwargs["length_penalty"],
        repetition_penalty=kwargs.get("repetition_penalty", 1.0),
        lavis_lengths=True,
    )


def prompts_of(kind: str, call: dict[str, Any]) -> list[str]:
    if "text_input" in call:
        return [call.get("prompt", "{}").format(text) for text in call["text_input"]]
    prompt = call.get("prompt", "a photo of " if kind == "opt" else "a photo of")
    return [prompt] * 4 if isinstance(prompt, str) else prompt


@pytest.mark.parametrize(("kind", "call", "key"), CALLS)
def test_recorded_texts(languages: dict[str, Any], kind: str, call: str, key: str) -> None:
    record, embeds = recorded(kind)[call][key], tensors(kind, "generate_tensors")
    language = languages[kind]
    # The original read queries and prompt; prompts of OPT were cut to 16 tokens.
    texts = language.generate(
        embeds[f"{key}.inputs_embeds"][:, _queries(kind, embeds[f"{key}.attention_mask"])],
        prompts_of(kind, record["call"]),
        options_of(record["kwargs"]),
        max_txt_len=16 if kind == "opt" else None,
    )
    assert texts == record["text"]


def _queries(kind: str, mask: torch.Tensor) -> slice:
    """Both families put the queries first, before any padding."""
    assert mask[:, :QUERIES].all()
    return slice(0, QUERIES)


@pytest.mark.parametrize(("kind", "call", "key"), CALLS)
def test_recorded_ids(
    languages: dict[str, Any],
    kind: str,
    call: str,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ids themselves, the start token among them, not only their text."""
    record, embeds = recorded(kind)[call][key], tensors(kind, "generate_tensors")
    language, found = languages[kind], []
    monkeypatch.setattr(language.codec, "decode", lambda ids: found.extend(ids.tolist()) or [])
    language.generate(
        embeds[f"{key}.inputs_embeds"][:, :QUERIES],
        prompts_of(kind, record["call"]),
        options_of(record["kwargs"]),
        max_txt_len=16 if kind == "opt" else None,
    )
    width = max(len(ids) for ids in record["ids"]) - 1
    assert [ids[:width] for ids in found] == [ids[1:] for ids in record["ids"]]


@pytest.mark.parametrize("case", ["prompt", "noprompt"])
def test_opt_loss(languages: dict[str, Any], case: str) -> None:
    """The original masks one word more than the prompt, and without a prompt not even the start."""
    record = recorded("opt")["cases"][case]
    prefix = tensors("opt", "prompt_tensors")["lm_inputs_embeds"][:, :QUERIES]
    prompt = record["prompt"]
    nll = languages["opt"].nll(
        prefix,
        [prompt] * 4,
        [text.removeprefix(prompt) for text in record["text_input"]],
        max_txt_len=16,
        skip=record["prompt_length"] if prompt else 0,
    )
    loss = (nll.total.sum() / nll.count.sum()).item()
    assert loss == pytest.approx(record["loss"], rel=1e-5)
    labels = tensors("opt", f"{case}_tensors")["lm_labels"]
    assert nll.count.tolist() == (labels != -100).sum(1).tolist()


def test_t5_loss(languages: dict[str, Any]) -> None:
    record = recorded("t5")["cases"]["prefix_lm"]
    prefix = tensors("t5", "prefix_tensors")["lm_inputs_embeds"][:, :QUERIES]
    nll = languages["t5"].nll(prefix, record["text_input"], record["text_output"], max_txt_len=16)
    loss = (nll.total.sum() / nll.count.sum()).item()
    assert loss == pytest.approx(record["loss"], rel=1e-5)


def test_t5_keeps_a_head_of_its_own(languages: dict[str, Any]) -> None:
    model = languages["t5"].model
    state = tensors("t5", "state")
    assert torch.equal(model.lm_head.weight, state["t5_model.lm_head.weight"])
    assert torch.equal(model.shared.weight, state["t5_model.shared.weight"])
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
