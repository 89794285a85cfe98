"""A few digits that tell one set of frozen weights from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

_KEPT = "fingerprint_of_whole_weights"


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits from the names, shapes and a few values of each tensor.

    The values count as bfloat16: what ``precision: auto`` loads on a GPU and on a CPU is the same
    part.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if tensor.numel() and not tensor.is_meta:
            step = max(1, tensor.numel() // 7)
            some: Sequence[float] = tensor.detach().flatten()[::step][:8].bfloat16().tolist()
            digest.update(" ".join(f"{value:.3e}" for value in some).encode())
    return digest.hexdigest()


def keep_fingerprint(module: nn.Module, digits: str) -> None:
    """Let `kept_fingerprint` be `digits`: the weights are about to be stored in another way."""
    setattr(module, _KEPT, digits)


def kept_fingerprint(module: nn.Module) -> str | None:
    """What `keep_fingerprint` was told, if it was."""
    return getattr(module, _KEPT, None)
