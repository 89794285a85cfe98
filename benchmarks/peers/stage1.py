"""A training step of stage 1 as the original computes it, on the weights of a `Blip2Qformer`.

What costs it time: texts always padded to max_txt_len; attention spelled out; keys and values of
the image projected once for the contrast and again for three times as many pairs in the matching;
text rows in the matching that nobody reads; logits for padding; negatives drawn one by one, each
with a wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.models.blip2.base import TEMPERATURE_RANGE
from lavislite.models.blip2.stage1 import Blip2Qformer
from peers.qformer import bert, language_logits, padded_texts

Pair = tuple[Tensor, Tensor]


def peer_losses(
    model: Blip2Qformer, samples: dict[str, Any], negatives: Pair | None = None
) -> dict[str, Tensor]:
    """The losses of a batch in one process: loss, loss_itc, loss_itm and loss_lm.

    Args:
        samples: ``image`` [B, 3, H, W] and ``text_input`` (B strings).
        negatives: (image row for each text, text row for each image), instead of drawing them.
    """
    image = image_tokens(model, samples["image"])
    ids, mask = padded_texts(model.tokenizer, samples["text_input"], model.cfg.max_txt_len)
    ids, mask = ids.to(image.device), mask.to(image.device)
    queries = model.query_tokens.expand(len(image), -1, -1)

    seen, cache = bert(model.Qformer, queries=queries, image=image)
    text, _ = bert(model.Qformer, ids=ids, mask=mask)
    sims = _similarities(model, seen, text[:, 0])
    itc = _contrast(*sims, model.cfg.label_smoothing)
    itm = _matching(model, image, ids, mask, negatives or _draw(*sims))
    lm = _language(model, ids, mask, cache)
    return {"loss": itc + itm + lm, "loss_itc": itc, "loss_itm": itm, "loss_lm": lm}


def image_tokens(model: Any, image: Tensor) -> Tensor:
    """[B, T, C] after ln_vision; the frozen tower's attention is spelled out where it can be."""
    with _plain_attention(model.visual_encoder):
        return model.ln_vision(model.visual_encoder(image))


@contextmanager
def _plain_attention(tower: nn.Module) -> Iterator[None]:
    """A timm tower computes its attention without fused kernels, as the original's does."""
    fused: dict[Any, bool] = {m: m.fused_attn for m in tower.modules() if hasattr(m, "fused_attn")}
    try:
        for module in fused:
            module.fused_attn = False
        yield
    finally:
        for module, was in fused.items():
            module.fused_attn = was


def _similarities(model: Blip2Qformer, seen: Tensor, cls: Tensor) -> Pair:
    """Image-to-text and text-to-image logits [B, B]."""
    images = F.normalize(model.vision_proj(seen), dim=-1)
    texts = F.normalize(model.text_proj(cls), dim=-1)
    temperature = model.temp.clamp(*TEMPERATURE_RANGE)
    # What the other rows give is gathered from the processes without a gradient.
    per_query = images.unsqueeze(1) @ texts.detach()[None, :, :, None]
    i2t = per_query.squeeze(-1).max(-1).values
    per_query = texts[:, None, None, :] @ images.detach().permute(0, 2, 1)
    t2i = per_query.squeeze(-2).max(-1).values
    return i2t / temperature, t2i / temperature


def _contrast(i2t: Tensor, t2i: Tensor, smoothing: float) -> Tensor:
    own = torch.arange(len(i2t), device=i2t.device)
    there = F.cross_entropy(i2t, own, label_smoothing=smoothing)
    back = F.cross_entropy(t2i, own, label_smoothing=smoothing)
    return (there + back) / 2


@torch.no_grad()
def _draw(i2t: Tensor, t2i: Tensor) -> Pair:
    """A hard negative for each row, one after the other."""
    found = []
    for sim in (t2i, i2t):
        weights = sim.clone().fill_diagonal_(-10_000).softmax(1)
        rows = [torch.multinomial(weights[b], 1).item() for b in range(len(weights))]
        found.append(torch.tensor(rows, device=sim.device))
    return found[0], found[1]


def _matching(
    model: Blip2Qformer, image: Tensor, ids: Tensor, mask: Tensor, negatives: Pair
) -> Tensor:
    batch = len(image)
    other_images = torch.stack([image[i] for i in negatives[0].tolist()])
    other_ids = torch.stack([ids[i] for i in negatives[1].tolist()])
    other_mask = torch.stack([mask[i] for i in negatives[1].tolist()])
    queries = model.query_tokens.expand(3 * batch, -1, -1)
    text_mask = torch.cat([mask, mask, other_mask])
    rows, _ = bert(
        model.Qformer,
        queries=queries,
        ids=torch.cat([ids, ids, other_ids]),
        mask=torch.cat([torch.ones_like(queries[..., 0], dtype=text_mask.dtype), text_mask], 1),
        image=torch.cat([image, other_images, image]),
    )
    logits = model.itm_head(rows[:, : queries.shape[1]]).mean(1)
    labels = (torch.arange(3 * batch, device=image.device) < batch).long()
    return F.cross_entropy(logits, labels)


def _language(
    model: Blip2Qformer, ids: Tensor, mask: Tensor, cache: list[tuple[Tensor, Tensor]]
) -> Tensor:
    targets = ids.masked_fill(ids == model.tokenizer.pad_token_id, -100)[:, 1:]
    ids = ids.clone()
    ids[:, 0] = model.tokenizer.bos_token_id
    length, queries = ids.shape[1], cache[0][0].shape[2]
    causal = torch.ones(length, length, device=ids.device, dtype=mask.dtype).tril()
    seen = F.pad(causal * mask[:, None, :], (queries, 0), value=1)
    rows, _ = bert(model.Qformer, ids=ids, mask=seen, past=cache)
    logits = language_logits(model.Qformer, rows)[:, :-1].contiguous()
    smoothing = model.cfg.label_smoothing
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
