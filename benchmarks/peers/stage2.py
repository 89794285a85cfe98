"""A training step of stage 2 with OPT as the original computes it, on the weights of a `Blip2OPT`.

What costs it time: attention spelled out, in the language model as well; gradients with respect to
every image token; and logits over the whole vocabulary for every row, those of the image, the
prompt and the padding among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lavislite.models.blip2.stage2 import Blip2OPT
from peers.qformer import bert, padded_texts
from peers.stage1 import image_tokens

IGNORED = -100


def peer_loss(model: Blip2OPT, samples: dict[str, Any]) -> dict[str, Tensor]:
    """The loss of a batch in one process.

    Args:
        samples: ``image`` [B, 3, H, W] and ``text_input``, B captions that begin with `cfg.prompt`,
            as the original's text processor leaves them.
    """
    image = image_tokens(model, samples["image"])
    queries = model.query_tokens.expand(len(image), -1, -1)
    seen, _ = bert(model.Qformer, queries=queries, image=image)
    prefix = model.llm_proj(seen)

    ids, mask, labels = _texts(model, samples["text_input"])
    inputs = torch.cat([prefix, model.language.embed(ids.to(prefix.device))], 1)
    before = torch.ones(prefix.shape[:2], dtype=mask.dtype)
    labels = torch.cat([torch.full(prefix.shape[:2], IGNORED), labels], 1)
    with _plain_attention(model.language.model) as language:
        output = language(
            inputs_embeds=inputs,
            attention_mask=torch.cat([before, mask], 1).to(prefix.device),
            labels=labels.to(prefix.device),
            use_cache=False,
        )
    return {"loss": output.loss}


def _texts(model: Blip2OPT, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [B, longest]; padding and prompt are no labels."""
    tokenizer, prompt = model.language.tokenizer, model.cfg.prompt
    texts = [caption + model.cfg.language.end for caption in captions]
    ids, mask = padded_texts(tokenizer, texts, model.cfg.max_txt_len, "longest")
    labels = ids.masked_fill(mask == 0, IGNORED)
    if prompt:
        labels[:, : len(tokenizer(prompt)["input_ids"])] = IGNORED
    return ids, mask, labels


@contextmanager
def _plain_attention(language: Any) -> Iterator[Any]:
    """The library's language model computes its attention without fused kernels."""
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield language
    finally:
        language.set_attn_implementation(before)
