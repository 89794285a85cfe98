"""Position embeddings of one image size, fitted to another."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lavislite.common.errors import CheckpointError


def interpolate_positions(
    positions: Tensor, tokens: int, *, prefix: int = 1, align_corners: bool = False
) -> Tensor:
    """Position embeddings [1, prefix + n*n, C] -> [1, tokens, C], bicubic, without antialiasing.

    Args:
        prefix: leading tokens that are no patches; they are kept.
        align_corners: False as LAVIS does for EVA, True as it does for CLIP.

    Raises:
        CheckpointError: either number of patches is not a square.
    """
    if positions.shape[1] == tokens:
        return positions
    old, new = math.isqrt(positions.shape[1] - prefix), math.isqrt(tokens - prefix)
    if old * old != positions.shape[1] - prefix or new * new != tokens - prefix:
        raise CheckpointError(
            f"Cannot fit {positions.shape[1]} position embeddings to {tokens}: "
            "both must be squares of patches."
        )
    grid = positions[:, prefix:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], patches], 1)
