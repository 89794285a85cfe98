"""Dropout, and attention with it, that are fast on a CPU too.

There torch draws one random number after the other, for every element, and has no fused attention
with dropout. Here one draw serves four elements, with 16 bits for each. GPUs and compiled code go
torch's own ways.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # p is rounded to a multiple of one over it


class Dropout(nn.Dropout):
    """`nn.Dropout`; the same elements for the same state of torch's generator, but other ones."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p > 0 else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Each element zero with probability `p`, else divided by ``1 - p``."""
    dropped = round(p * _LEVELS)
    if not draws_singly(x) or dropped == _LEVELS:
        return F.dropout(x, p)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, dropped - _LEVELS // 2, out=kept)
    return x * kept.mul_(_LEVELS / (_LEVELS - dropped))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """`F.scaled_dot_product_attention` with a mask that is True where a key may be seen."""
    if p == 0 or not draws_singly(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        hidden = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        scores = scores + hidden
    return dropout(scores.softmax(-1), p) @ v


def draws_singly(x: Tensor) -> bool:
    """Whether torch would draw one random number after the other."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
