"""Features as bytes: float32, bfloat16, or int8 with a scale for every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNED = 64  # bytes; every view begins at a multiple
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_SCALE = 4  # bytes
_LARGEST = 127


@dataclass(frozen=True)
class Layout:
    """How the features [tokens, width] of one view lie in its bytes.

    Attributes:
        dtype: "fp32", "bf16" or "int8". The latter's tokens are multiples of a scale each, so that
            the largest number of a token is 127 times its scale; the scales come first.
    """

    tokens: int
    width: int
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of a view."""
        own = self.tokens * (self.width * _TYPES[self.dtype].itemsize + self._scale_bytes)
        return -(-own // _ALIGNED) * _ALIGNED

    @property
    def _scale_bytes(self) -> int:
        return _SCALE if self.dtype == "int8" else 0

    def encode(self, features: Tensor) -> Tensor:
        """[B, tokens, width] -> uint8 [B, nbytes], where the features are."""
        if self.dtype == "int8":
            x = features.float()
            scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / _LARGEST
            rounded = (x / scale).round().to(torch.int8)
            parts = [_as_bytes(scale), _as_bytes(rounded)]
        else:
            parts = [_as_bytes(features.to(_TYPES[self.dtype]))]
        raw = torch.cat(parts, 1)
        return F.pad(raw, (0, self.nbytes - raw.shape[1]))

    def decode(self, raw: Tensor) -> Tensor:
        """uint8 [nbytes] -> [tokens, width] in float32 or, if it was rounded, in bfloat16.

        It may share the memory of `raw`.
        """
        first = self.tokens * self._scale_bytes
        kind = _TYPES[self.dtype]
        last = first + self.tokens * self.width * kind.itemsize
        numbers = raw[first:last].view(kind).view(self.tokens, self.width)
        if self.dtype != "int8":
            return numbers
        scale = raw[:first].view(torch.float32)[:, None]
        return (numbers * scale).to(torch.bfloat16)

    def relative_error(self, features: Tensor) -> float:
        """How far what is stored is from `features` [B, tokens, width]: RMS, relative to theirs."""
        stored = torch.stack([self.decode(raw) for raw in self.encode(features)])
        return distance(stored, features)


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, relative to that of `other`."""
    other = other.double()
    return float((one.double() - other).norm() / other.norm().clamp_min(1e-30))


def _as_bytes(x: Tensor) -> Tensor:
    """[B, ...] -> uint8 [B, bytes]"""
    return x.contiguous().flatten(1).view(torch.uint8)
