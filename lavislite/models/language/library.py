"""Generation by the library, which reads image and prompt once for each beam.

For models whose state cannot branch (`branches.can_branch`), or that have wishes of their own.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from lavislite.common.generation import GenerationOptions
from lavislite.models.language.packing import Packed


def write_by_library(language: Any, packed: Packed, options: GenerationOptions) -> Tensor:
    """New tokens [B * num_captions, n] after what is packed, ended and padded."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    sampling = options.use_nucleus_sampling
    drawing = {"top_p": options.top_p, "temperature": options.temperature, "top_k": 0}
    beams = {"length_penalty": options.length_penalty, "early_stopping": False}
    processors = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        # The library's own would skip as many new tokens as a row has padding.
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    with torch.no_grad(), language.own_precision(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
        ids = language.model.generate(
            inputs_embeds=packed.embeds,
            attention_mask=packed.mask,
            do_sample=sampling,
            num_beams=1 if sampling else options.num_beams,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            repetition_penalty=1.0,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            num_return_sequences=options.num_captions,
            eos_token_id=language.stop_ids,
            pad_token_id=language.codec.pad,
            logits_processor=processors,
            return_dict_in_generate=False,
            synced_gpus=False,  # under FSDP too every process writes its own rows, by itself
            **(drawing if sampling else {}),
            **(beams if not sampling and options.num_beams > 1 else {}),
        )
    new: Tensor = ids[:, language.kind == "seq2seq" :]
    return new
