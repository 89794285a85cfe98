"""One process that computes what one of several would, without any of the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from lavislite.common import distributed
from lavislite.estimate.replaced import replaced


def as_one_of(world: int) -> AbstractContextManager[None]:
    """Inside, models see `world` processes: what they exchange has its true shape, but no content.

    Nothing is started and nothing is sent.
    """

    def gather(x: Tensor) -> Tensor:
        return x.detach().repeat(world, *[1] * (x.ndim - 1))

    def exchange(x: Tensor, index: Tensor) -> Tensor:
        return x[index % x.shape[0]].clone()  # as it arrives, and in the order asked for

    pretended: dict[str, Any] = {
        "world_size": lambda: world,
        "max_int": lambda n: n,
        "gather_no_grad": gather,
        "exchange_rows": exchange,
        "all_reduce_sum": lambda x: x.detach().clone(),
    }
    return nullcontext() if world == 1 else replaced(distributed, pretended)
