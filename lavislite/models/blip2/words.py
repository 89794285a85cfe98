"""The word embedding during one pass: look-ups and the output matrix, with one gradient for all.

Each look-up on its own would bring a gradient of the size of the whole vocabulary, nearly all of it
zeros, and a sum of that with the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Words:
    """Rows of the word embedding [V, d], and the embedding as the output matrix.

    Use one for all look-ups of a pass, and `matrix` after the last of them: in the backward pass
    each adds what its rows learn to the gradient that comes from there.
    """

    def __init__(self, weight: Tensor) -> None:
        self.matrix = weight

    def look_up(self, ids: Tensor) -> Tensor:
        """[...] token ids -> [..., d]"""
        rows, self.matrix = _LookUp.apply(self.matrix, ids)
        return rows


class _LookUp(torch.autograd.Function):
    """Rows of a matrix, and the matrix again, whose gradient takes up that of the rows in place."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.shape = matrix.shape
        ctx.set_materialize_grads(False)  # a matrix that nothing else uses has none
        return matrix[ids], matrix.detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, rows: Tensor | None, matrix: Tensor | None
    ) -> tuple[Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        if rows is None:
            return matrix, None
        if matrix is None:
            matrix = rows.new_zeros(ctx.shape)
        if rows.device.type == "cpu":
            matrix.index_add_(0, ids.flatten(), rows.flatten(0, -2))
        else:  # sorted, so that the same token twice gives the same sum each time
            matrix.index_put_((ids,), rows, accumulate=True)
        return matrix, None
