"""Text as LAVIS wrote it: beam search whose lengths count a start token (``lavis_lengths``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavislite.common.generation import GenerationOptions
from lavislite.models.decoding import Decoding, Step, beam_search, sample


def continue_causal(
    language: Any, embeds: Tensor, mask: Tensor, options: GenerationOptions
) -> list[str]:
    """Texts after embeds [B, L, d], padded at the left (mask [B, L])."""
    rows = _rows(options)
    mask = mask.repeat_interleave(rows, 0)
    start = {"inputs_embeds": embeds.repeat_interleave(rows, 0)}
    own_positions = "position_ids" in _arguments(language.model)

    def inputs(tokens: Tensor) -> dict[str, Tensor]:
        seen = torch.cat([mask, mask.new_ones(len(tokens), tokens.shape[1] - 1)], 1)
        new = start if tokens.shape[1] == 1 else {"input_ids": tokens[:, -1:]}
        width = next(iter(new.values())).shape[1]
        positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        return {"attention_mask": seen, **new} | (
            {"position_ids": positions} if own_positions else {}
        )

    begin = language.tokenizer.bos_token_id
    begin = language.codec.start if begin is None else begin
    return _decode(language, inputs, len(embeds), options, begin)


def continue_seq2seq(
    language: Any, embeds: Tensor, mask: Tensor, options: GenerationOptions, *, begin: int
) -> list[str]:
    """Texts for what the encoder reads: embeds [B, L, d] with mask [B, L]."""
    rows = _rows(options)
    with language.own_precision():
        encoded = language.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
    encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(rows, 0)
    mask = mask.repeat_interleave(rows, 0)

    def inputs(tokens: Tensor) -> dict[str, Any]:
        return {
            "encoder_outputs": encoded,
            "attention_mask": mask,
            "decoder_input_ids": tokens[:, -1:],
        }

    return _decode(language, inputs, len(embeds), options, begin)


def _decode(
    language: Any, inputs: Any, batch: int, options: GenerationOptions, begin: int
) -> list[str]:
    """Run the search over a model whose arguments for the tokens so far are ``inputs(tokens)``."""
    step = _step(language, inputs)
    how = Decoding(
        begin=begin,
        end=language.codec.end,
        pad=language.codec.pad,
        max_length=options.max_new_tokens + 1,
        min_length=options.min_new_tokens,
        num_beams=1 if options.use_nucleus_sampling else options.num_beams,
        length_penalty=options.length_penalty,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        top_p=options.top_p,
        temperature=options.temperature,
        num_return=1 if options.use_nucleus_sampling else options.num_captions,
    )
    device = language.embedding.weight.device
    if options.use_nucleus_sampling:
        ids = sample(step, batch * options.num_captions, how, device)
    else:
        ids = beam_search(step, batch, how, device)
    return language.codec.decode(ids[:, 1:])


def _step(language: Any, inputs: Any) -> Step:
    cache: Any = None

    def step(tokens: Tensor, parents: Tensor | None) -> Tensor:
        nonlocal cache
        if parents is not None and cache is not None:
            cache.reorder_cache(parents)
        with torch.no_grad(), language.own_precision():
            out = language.model(**inputs(tokens), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        return out.logits[:, -1]

    return step


def _rows(options: GenerationOptions) -> int:
    """How many rows each image and prompt needs."""
    return options.num_captions if options.use_nucleus_sampling else options.num_beams


def _arguments(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)
