"""Random states: seeding, saving and restoring them, and generators that all processes share."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

_seed = 0
_shared: dict[str, torch.Generator] = {}


def seed_everything(seed: int, *, rank: int = 0) -> None:
    """Seed Python, NumPy and torch with `seed + rank`, and the shared generators with `seed`.

    Models are built with rank 0 everywhere, so that random weights agree; training passes the rank,
    so that each process draws its own dropout.
    """
    global _seed
    _seed = seed
    random.seed(seed + rank)
    numpy.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)
    _shared.clear()


def shared_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` in the same state on every process, for decisions all must share.

    It stays so as long as every process draws the same from it. `seed_everything` restarts it.
    """
    kind = torch.device(device).type
    if kind not in _shared:
        _shared[kind] = torch.Generator(device)
        _shared[kind].manual_seed(_seed)
    return _shared[kind]


def rng_state() -> dict[str, Any]:
    """Every random state of this process, as tensors and plain values (loads with weights_only)."""
    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, numpy.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "seed": _seed,
        "shared": {device: generator.get_state() for device, generator in _shared.items()},
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned; GPU states are left out where there is no GPU."""
    global _seed
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    _seed = state["seed"]
    _shared.clear()
    for device, shared in state["shared"].items():
        if device != "cuda" or torch.cuda.is_available():
            shared_generator(device).set_state(shared)
