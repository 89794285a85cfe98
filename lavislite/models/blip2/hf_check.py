"""Proof that an exported folder computes what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.models.blip2.hf_format import is_stage1

PROMPT = "a photo of"


@torch.no_grad()
def greatest_difference(model: Any, folder: str | Path) -> float:
    """The folder, loaded by transformers, against `model`: greatest difference of any logit.

    Both read the same two random images, once with and once without a prompt. Logits are of the
    order of ten; what float32 computes in another order differs by about 1e-6.
    """
    import transformers

    stage1 = is_stage1(model.state_dict())
    cls: Any = transformers.Blip2ForConditionalGeneration
    if stage1:
        cls = transformers.Blip2ForImageTextRetrieval
    theirs = cls.from_pretrained(folder).to(model.device).eval()
    size = theirs.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator).to(model.device)
    was_training = model.training
    model.eval()
    try:
        compare = _retrieval if stage1 else _writing
        pairs = compare(model, theirs, images)
    finally:
        model.train(was_training)
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


def _retrieval(model: Any, theirs: Any, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Matching logits and cosines."""
    captions = [PROMPT, f"{PROMPT} {PROMPT}"]
    text = model.pack(captions).to(model.device)
    inputs = {"pixel_values": images, "input_ids": text.ids, "attention_mask": text.mask}
    matching = theirs(**inputs, use_image_text_matching_head=True).logits_per_image
    cosine = theirs(**inputs).logits_per_image
    tokens = model.encode_image(images)
    memory = model.Qformer.image_memory(tokens)
    pairs = model.Qformer.encode_pairs(model.query_tokens, text.ids, text.mask, memory)
    queries, _ = model.Qformer.encode_queries(model.query_tokens, memory)
    image_feats = model.project_image(queries)
    text_feats = model.project_text(model.Qformer.encode_text(text.ids, text.mask)[:, 0])
    ours = torch.einsum("bqe,te->bqt", image_feats, text_feats).amax(1)
    return [(model.itm_head(pairs).mean(1), matching), (ours, cosine)]


def _writing(model: Any, theirs: Any, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits of the language model after the image and a prompt, and after the image alone."""
    prefix, _ = model.image_prefix(images)
    return [
        (_own_logits(model, prefix, prompt), _their_logits(model, theirs, images, prompt))
        for prompt in (PROMPT, "")
    ]


def _own_logits(model: Any, prefix: Tensor, prompt: str) -> Tensor:
    language = model.language
    ids = _ids(model, prompt, len(prefix))
    embeds = torch.cat([language.adopt(prefix), language.embed(ids)], 1)
    return language.model(inputs_embeds=embeds, **_decoder(model, len(prefix))).logits


def _their_logits(model: Any, theirs: Any, images: Tensor, prompt: str) -> Tensor:
    ids = _ids(model, prompt, len(images))
    slots = ids.new_full(
        (len(ids), theirs.config.num_query_tokens), theirs.config.image_token_index
    )
    ids = torch.cat([slots, ids], 1)
    decoder = _decoder(model, len(images))
    logits = theirs(pixel_values=images, input_ids=ids, **decoder).logits
    return logits[..., : model.language.embedding.weight.shape[0]]  # without a row for <image>


def _ids(model: Any, prompt: str, batch: int) -> Tensor:
    codec = model.language.codec
    row = [*codec.leading, *codec.plain(prompt), *codec.trailing] or [codec.start]
    return torch.tensor([row] * batch, device=model.device)


def _decoder(model: Any, batch: int) -> dict[str, Tensor]:
    if model.language.kind == "causal":
        return {}
    start = model.language.decoder_start
    return {"decoder_input_ids": torch.full((batch, 1), start, device=model.device)}
