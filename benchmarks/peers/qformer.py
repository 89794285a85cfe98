"""The Q-Former as the original runs it: every row of every layer, attention spelled out.

Shapes: B samples, Q queries, L text tokens, T image tokens, C their width, d width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.models.blip2.layers import Attention, KeyValue, QFormerLayer
from lavislite.models.blip2.qformer import QFormer

MASKED = -10_000.0  # added to the scores of keys that may not be seen


def padded_texts(
    tokenizer: Any, texts: Sequence[str], length: int, padding: str = "max_length"
) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, length] on the CPU, every text cut or padded to `length`.

    Args:
        padding: "longest" pads no further than to the longest text.
    """
    tokens = tokenizer(
        list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt"
    )
    return tokens["input_ids"], tokens["attention_mask"]


def bert(
    model: QFormer,
    *,
    queries: Tensor | None = None,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    image: Tensor | None = None,
    past: list[KeyValue] | None = None,
) -> tuple[Tensor, list[KeyValue]]:
    """All rows [B, queries + text, d] after the last layer, and keys and values of each layer.

    Args:
        queries: [B, Q, d], the query tokens of each sample.
        ids: [B, L]
        mask: [B, keys], or [B, rows, keys], 1 where a key may be seen; None: all may.
        image: [B, T, C], whose keys and values are made here, for each layer that looks.
        past: keys and values of earlier rows.
    """
    hidden = _embed(model, queries, ids)
    added = None
    if mask is not None:
        seen = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        added = (1.0 - seen.to(hidden.dtype)) * MASKED
    cache = []
    for number, layer in enumerate(model.layers):
        before = None if past is None else past[number]
        hidden, present = _layer(layer, hidden, _count(queries), added, image, before)
        cache.append(present)
    return hidden, cache


def language_logits(model: QFormer, rows: Tensor) -> Tensor:
    """[..., d] -> scores of the next token [..., vocabulary], for every row."""
    head = model.cls.predictions
    transform = head.transform
    rows = transform.LayerNorm(F.gelu(transform.dense(rows)))
    return F.linear(rows, model.bert.embeddings.word_embeddings.weight, head.bias)


def _count(queries: Tensor | None) -> int:
    return 0 if queries is None else queries.shape[1]


def _embed(model: QFormer, queries: Tensor | None, ids: Tensor | None) -> Tensor:
    embeddings = model.bert.embeddings
    parts = [] if queries is None else [queries]
    if ids is not None:
        positions = torch.arange(ids.shape[1], device=ids.device)
        words = embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions)
        parts.append(words)
    return embeddings.dropout(embeddings.LayerNorm(torch.cat(parts, 1)))


def _layer(
    layer: QFormerLayer,
    hidden: Tensor,
    queries: int,
    mask: Tensor | None,
    image: Tensor | None,
    past: KeyValue | None,
) -> tuple[Tensor, KeyValue]:
    rows, present = _attention(layer.attention, hidden, hidden, mask, past)
    parts = []
    if queries:
        seeing = rows[:, :queries]
        if layer.crossattention is not None:
            assert image is not None
            seeing, _ = _attention(layer.crossattention, seeing, image)
        parts.append(_feed_forward(layer.intermediate_query, layer.output_query, seeing))
    if rows.shape[1] > queries:
        parts.append(_feed_forward(layer.intermediate, layer.output, rows[:, queries:]))
    return torch.cat(parts, 1), present


def _attention(
    block: Attention,
    rows: Tensor,
    source: Tensor,
    mask: Tensor | None = None,
    past: KeyValue | None = None,
) -> tuple[Tensor, KeyValue]:
    """Attention of `rows` to `source`, with dropout on the probabilities; and its keys, values."""
    project = block.self
    q = block.heads(project.query(rows))
    k, v = block.heads(project.key(source)), block.heads(project.value(source))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    chances = F.dropout(scores.softmax(-1), block.dropout_p, block.training)
    context = (chances @ v).permute(0, 2, 1, 3).flatten(2)
    return block.output(context, rows), (k, v)


def _feed_forward(inner: nn.Module, outer: nn.Module, rows: Tensor) -> Tensor:
    return outer(inner(rows), rows)
