"""Image tokens and text in one row, padding at one end: the layout that every family reads right.

Padding between image and text is misread by models that count positions by index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """embeds [B, L, d]; mask [B, L], 1 where real; start [B]: real prefix rows before the text."""

    embeds: Tensor
    mask: Tensor
    start: Tensor


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


def pad_right(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> ids [B, T] and mask [B, T], true where real."""
    longest = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest) < lengths[:, None]
    ids = ids.reshape(len(rows), longest)
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)


class Targets(NamedTuple):
    """All target tokens of a batch: row, position in the text and id, each [N]."""

    rows: Tensor
    positions: Tensor
    ids: Tensor

    @staticmethod
    def of(texts: Sequence[Sequence[int]], first: Sequence[int], device: torch.device) -> Targets:
        """All tokens of row b of `texts` from position ``first[b]`` on."""
        found = [
            (row, position, text[position])
            for row, text in enumerate(texts)
            for position in range(first[row], len(text))
        ]
        table = torch.tensor(found, dtype=torch.long).reshape(-1, 3).T.to(device, non_blocking=True)
        return Targets(*table)
