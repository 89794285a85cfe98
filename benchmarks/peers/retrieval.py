"""Re-ranking as the original does it: query by query, every pair from its image tokens on.

For each picture the k best texts go through the Q-Former with the picture's tokens repeated k
times, their keys and values projected for each pair again; then for each text the k best pictures.
A pair that both want is scored twice. Texts are padded to 35 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lavislite.models.blip2.stage1 import Blip2Qformer
from peers.qformer import bert, padded_texts

LENGTH = 35


@torch.no_grad()
def peer_rerank(
    model: Blip2Qformer, image_embeds: Tensor, texts: Sequence[str], itc: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Match logits of the k best texts of each picture, and of the k best pictures of each text.

    Args:
        image_embeds: [N, T, C] after ln_vision.
        itc: [N, M] similarities.

    Returns:
        [N, M] and [N, M], NaN where a pair is not wanted.
    """
    ids, mask = padded_texts(model.tokenizer, texts, LENGTH)
    of_images, of_texts = torch.full_like(itc, torch.nan), torch.full_like(itc, torch.nan)
    for i, similarities in enumerate(itc):
        best = similarities.topk(k).indices
        repeated = image_embeds[i].repeat(k, 1, 1)
        of_images[i, best] = _match(model, repeated, ids[best], mask[best])
    for t, similarities in enumerate(itc.T):
        best = similarities.topk(k).indices
        found = _match(model, image_embeds[best], ids[t].repeat(k, 1), mask[t].repeat(k, 1))
        of_texts[best, t] = found
    return of_images, of_texts


def _match(model: Blip2Qformer, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    queries = model.query_tokens.expand(len(image), -1, -1)
    seen = torch.ones(queries.shape[:2], dtype=mask.dtype)
    rows, _ = bert(
        model.Qformer, queries=queries, ids=ids, mask=torch.cat([seen, mask], 1), image=image
    )
    return model.itm_head(rows[:, : queries.shape[1]])[..., 1].mean(1)
