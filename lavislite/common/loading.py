"""Loading for evaluation: whole batches are dealt to the processes, so batches never change.

Batch k holds the same samples whatever the number of processes, and rank ``k % W`` computes it.
Scores that depend on the company of a sample in its batch (contrastive losses, padding, rounding)
are therefore the same on one GPU and on eight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lavislite.common import distributed, heartbeat
from lavislite.common.allocator import give_memory_back
from lavislite.common.evaluation import EvalContext


def batch_indices(
    n: int, batch_size: int, limit: int | None = None, order: Sequence[int] | None = None
) -> list[list[int]]:
    """All batches of sample indices, on every process alike; the last may be short.

    Args:
        n: samples in the dataset.
        limit: keep only so many batches.
        order: permutation of the samples; None is their own order.
    """
    order = range(n) if order is None else order
    batches = [list(order[start : start + batch_size]) for start in range(0, n, batch_size)]
    return batches if limit is None else batches[:limit]


def own_numbers(n_batches: int) -> range:
    """The numbers of the batches this process computes."""
    return range(distributed.rank(), n_batches, distributed.world_size())


def evaluation_batches(
    dataset: Any, ctx: EvalContext, batches: Sequence[list[int]], title: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """This process's share of `batches`: their numbers and the collated samples on the device.

    A batch whose samples are all unreadable (collated to nothing) is left out; whoever gathers the
    rows notices that they are missing.
    """
    own = own_numbers(len(batches))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=[batches[k] for k in own],
        collate_fn=dataset.collate,
        num_workers=ctx.num_workers,
        pin_memory=ctx.device.type == "cuda",
        worker_init_fn=give_memory_back,
        generator=torch.Generator().manual_seed(0),  # else each loader draws from the global one
    )
    for k, samples in zip(own, progress_bar(loader, ctx, title), strict=True):
        if samples:
            yield k, to_device(samples, ctx.device)


def progress_bar(items: Any, ctx: EvalContext, title: str) -> Iterator[Any]:
    """`items` with a bar on the main process's terminal, if one is wanted."""
    if ctx.progress and distributed.is_main():
        from tqdm import tqdm

        items = tqdm(items, desc=title, leave=False, dynamic_ncols=True)
    for item in items:
        heartbeat.tick()
        yield item


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in it moved to `device`, and everything that has a `to` of its own.

    Other things stay as they are.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device) if callable(getattr(batch, "to", None)) else batch
