"""The three objectives of stage 1 as plain functions of tensors (BLIP-2, section 3.2).

Shapes: b rows of this process, N rows of all processes, Q queries, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NO_TARGET = -100  # in place of a token id: this row fills up a batch and is not to learn


def best_query_similarity(image_feats: Tensor, text_feats: Tensor) -> Tensor:
    """[b, Q, E] images and [N, E] texts -> [b, N]: cosine of each text with its best query."""
    return torch.einsum("bqe,ne->bqn", image_feats.float(), text_feats.float()).amax(1)


def contrastive_targets(same: Tensor) -> Tensor:
    """[b, N], True where row and column show the same image -> probabilities, shared equally."""
    return same.float() / same.sum(1, keepdim=True)


def contrastive_loss(
    sim_i2t: Tensor, sim_t2i: Tensor, targets: Tensor, label_smoothing: float
) -> Tensor:
    """Cross-entropy of both directions, averaged over them and over the rows; all are [b, N]."""
    i2t = F.cross_entropy(sim_i2t, targets, label_smoothing=label_smoothing)
    t2i = F.cross_entropy(sim_t2i, targets, label_smoothing=label_smoothing)
    return (i2t + t2i) / 2


def negative_weights(sim: Tensor, same: Tensor, sharpness: float = 1.0) -> Tensor:
    """[b, N] probability that column n is drawn as the negative of row b; 0 for the same image."""
    return _negative_logits(sim, same, sharpness).softmax(1)


def draw_negatives(
    sim: Tensor, same: Tensor, generator: torch.Generator, first_row: int, sharpness: float = 1.0
) -> Tensor:
    """One column index per row [b], drawn with `negative_weights` for all rows at once.

    The noise is drawn for the whole [N, N] problem and the rows from `first_row` on are used, so
    that several processes together draw what one would.
    """
    b, total = sim.shape
    noise = torch.empty(total, total, device=sim.device).exponential_(generator=generator)
    gumbel = -noise[first_row : first_row + b].clamp_min(1e-20).log()
    return (_negative_logits(sim, same, sharpness) + gumbel).argmax(1)


def _negative_logits(sim: Tensor, same: Tensor, sharpness: float) -> Tensor:
    return (sim.detach().float() * sharpness).masked_fill(same, -1e4)


def matching_loss(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Image-text matching: *sum* of the cross-entropy over the valid rows, and their number.

    Args:
        logits: [3b, 2]: b true pairs, b with another image, b with another text.
        valid: [b], False where there was no other image to draw from.
    """
    b = len(valid)
    labels = (torch.arange(3 * b, device=logits.device) < b).long()
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    weight = valid.repeat(3).to(loss.dtype)
    return (loss * weight).sum(), weight.sum()


def language_loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """*Sum* of the smoothed cross-entropy over tokens: [n, vocabulary] and [n].

    Rows whose target is `NO_TARGET` do not count.
    """
    return F.cross_entropy(
        logits.float(),
        targets,
        label_smoothing=label_smoothing,
        reduction="sum",
        ignore_index=NO_TARGET,
    )
