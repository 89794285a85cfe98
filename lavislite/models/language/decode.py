"""Writing on from what was read: beams, samples, or the likeliest token each time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lavislite.common.generation import GenerationOptions
from lavislite.models.decoding import Decoding, Step, beam_search, greedy, sample
from lavislite.models.language.reading import Reading


def write_on(reading: Reading, options: GenerationOptions, *, ends: Sequence[int]) -> Tensor:
    """New tokens after each prompt [B * num_captions, n], ended and padded.

    Args:
        ends: tokens that end a text.
    """
    codec, lavis = reading.language.codec, options.lavis_lengths
    sampling = options.use_nucleus_sampling
    how = Decoding(
        begin=reading.begin,
        end=ends[0],
        more_ends=tuple(ends[1:]),
        pad=codec.pad,
        max_length=options.max_new_tokens + 1,
        min_length=options.min_new_tokens + (not lavis),
        num_beams=1 if sampling else options.num_beams,
        length_penalty=options.length_penalty,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        top_p=options.top_p,
        temperature=options.temperature,
        num_return=1 if sampling else options.num_captions,
        begin_is_seen=reading.begin_is_seen,
        lavis=lavis,
    )
    batch, device = len(reading.logits), reading.logits.device
    step = _step(reading)
    if sampling:
        return sample(step, batch * options.num_captions, how, device)[:, 1:]
    if how.num_beams == 1 and not lavis:
        return greedy(step, batch, how, device)[:, 1:]
    return beam_search(step, batch, how, device)[:, 1:]


def _step(reading: Reading) -> Step:
    def step(tokens: Tensor, parents: Tensor | None) -> Tensor:
        batch = len(reading.logits)
        each = len(tokens) // batch
        if tokens.shape[1] == 1:
            return reading.logits.repeat_interleave(each, 0)
        if tokens.shape[1] == 2:
            reading.branch([row for row in range(batch) for _ in range(each)])
        elif parents is not None:
            reading.reorder(parents)
        return reading.read(tokens[:, -1:])

    return step
