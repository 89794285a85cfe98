"""Image tokens and text in one row, padding at one end: the layout that every family reads right.

Padding between image and text is misread by models that count positions by index.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """embeds [B, L, d]; mask [B, L], 1 where real; start [B]: real prefix rows before the text.

    padded: false when it is known that all is real.
    """

    embeds: Tensor
    mask: Tensor
    start: Tensor
    padded: bool = True


def pack(
    prefix: Tensor,
    text: Tensor,
    text_mask: Tensor,
    prefix_mask: Tensor | None = None,
    *,
    left: bool = False,
) -> Packed:
    """Join prefix [B, n, d] and text [B, T, d] by rows; what the masks leave out goes to one end.

    Args:
        text_mask, prefix_mask: [B, T] and [B, n], true where real; None means all of the prefix.
        left: padding comes first, as a causal model needs it to continue all rows at once;
            otherwise it comes last.
    """
    real = torch.ones_like(prefix[..., 0]) if prefix_mask is None else prefix_mask
    real = real.to(text_mask.device, torch.long)
    embeds, mask = torch.cat([prefix, text], 1), torch.cat([real, text_mask.long()], 1)
    if left or prefix_mask is not None:
        order = (mask if left else 1 - mask).argsort(dim=1, stable=True)
        embeds = embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[-1]))
        mask = mask.gather(1, order)
    return Packed(embeds, mask, real.sum(1))


def pad_right(rows: Sequence[Sequence[int]], pad: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> ids [B, T] and mask [B, T], true where real, on the CPU.

    Args:
        width: T is at least this.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    width = max(width, *map(len, rows), 0)
    mask = torch.arange(width) < lengths[:, None]
    real = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.long)
    return torch.full(mask.shape, pad).masked_scatter_(mask, real), mask


def uneven(rows: Sequence[Sequence[int]]) -> bool:
    """Whether rows differ in length, so that they need padding."""
    return len(set(map(len, rows))) > 1


def repeated_rows(prefix: Tensor) -> list[int] | None:
    """[B, n, d] -> for each row a number, the same as before it when the row is the same.

    None when no row equals the one before it, or there is nothing in them. Waits for the device.
    """
    if len(prefix) < 2 or prefix.shape[1] == 0:
        return None
    same = (prefix[1:] == prefix[:-1]).flatten(1).all(1).tolist()
    return list(accumulate((not x for x in same), initial=0)) if any(same) else None
