"""Computes the rows of a store that are missing: pictures by loading workers, features here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lavislite.common import distributed, heartbeat
from lavislite.common.allocator import give_memory_back
from lavislite.common.logging import get_logger
from lavislite.features.identity import number, seeded
from lavislite.features.store import FeatureStore, Writer

logger = get_logger(__name__)

_TOGETHER = 100  # batches between two meetings of the processes: none waits long for the others
_MEASURED = 4  # batches whose rounding error is measured
_SAY_EVERY = 60.0  # seconds

Tower = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Missing:
    """Pictures whose features are to be computed, in the order of their rows.

    Attributes:
        split, picture: [n] which of `splits` knows the picture, and its number there.
        row, name, stamp: [n] where it goes; what `identity.of_pictures` says of it.
    """

    splits: Sequence[Any]
    split: np.ndarray
    picture: np.ndarray
    row: np.ndarray
    name: np.ndarray
    stamp: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def of(self, chosen: np.ndarray) -> Missing:
        """Those at the places `chosen`, or for which it is true."""
        parts = (self.split, self.picture, self.row, self.name, self.stamp)
        return Missing(self.splits, *(part[chosen] for part in parts))


class Views(torch.utils.data.Dataset):
    """Item ``i * views + v`` is view v of missing picture i, [3, H, W], or None if unreadable.

    View v is what the split's processor makes under a seed that depends on `seed`, the picture and
    v alone.
    """

    def __init__(self, missing: Missing, views: int, seed: int) -> None:
        self.missing, self.views, self.seed = missing, views, seed

    def __len__(self) -> int:
        return len(self.missing) * self.views

    def __getitem__(self, item: int) -> tuple[int, Any]:
        i, view = divmod(item, self.views)
        split = self.missing.splits[int(self.missing.split[i])]
        seed = number(self.seed, int(self.missing.name[i]), view)
        process = partial(seeded, seed, split.vis_processor)
        return item, split.files.load(int(self.missing.picture[i]), process)


def fill(
    store: FeatureStore,
    missing: Missing,
    tower: Tower,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> float | None:
    """Compute and write this process's share of `missing`; all processes call it, however little.

    Every batch has the size of a training batch, so that the tower does the same arithmetic.

    Returns:
        the relative error of what is stored, measured on the first batches; None: there were none.

    Raises:
        DataError: more pictures are unreadable than their data set's `max_bad_fraction`.
        OSError: the disk is full.
    """
    items = Views(missing, store.views, seed)
    loader = DataLoader(
        items,
        batch_size=batch_size,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=give_memory_back,
        generator=torch.Generator().manual_seed(0),  # else from the global one
    )
    filling = _Filling(store, missing, tower, batch_size)
    batches = _told(loader, len(items), batch_size)
    for turn in range(distributed.max_int(len(loader))):
        heartbeat.tick()
        batch = next(batches, None)
        if batch is not None:
            filling.take(*batch)
        if turn % _TOGETHER == _TOGETHER - 1:
            distributed.barrier()
    next(batches, None)  # the bar ends
    filling.writer.commit()
    distributed.barrier()
    return filling.error


class _Filling:
    """Batches of pictures to rows on the disk."""

    def __init__(
        self, store: FeatureStore, missing: Missing, tower: Tower, batch_size: int
    ) -> None:
        self.writer = Writer(store)
        self._store, self._missing, self._tower = store, missing, tower
        self._batch_size = batch_size
        self._errors: list[float] = []
        self._written: dict[int, int] = {}  # views of pictures that are not complete

    @property
    def error(self) -> float | None:
        return sum(self._errors) / len(self._errors) if self._errors else None

    def take(self, items: Sequence[int], images: Tensor) -> None:
        """Write what the tower says of `images` [b, 3, H, W], which are the `items` of `Views`."""
        if not items:
            return
        features = self._tower(_filled_up(images, self._batch_size))[: len(items)]
        if len(self._errors) < _MEASURED:
            self._errors.append(self._store.layout.relative_error(features))
        rows = self._store.layout.encode(features).cpu().numpy()
        for item, raw in zip(items, rows, strict=True):
            i, view = divmod(item, self._store.views)
            self.writer.write(int(self._missing.row[i]), view, raw)
            self._written[i] = self._written.get(i, 0) + 1
            if self._written[i] == self._store.views:
                del self._written[i]
                self.writer.mark(int(self._missing.row[i]), int(self._missing.stamp[i]))


def _collate(samples: Sequence[tuple[int, Any]]) -> tuple[list[int], Tensor]:
    good = [(item, image) for item, image in samples if image is not None]
    images = torch.stack([image for _, image in good]) if good else torch.empty(0)
    return [item for item, _ in good], images


def _filled_up(images: Tensor, size: int) -> Tensor:
    """[b, ...] -> [size, ...], the last one repeated."""
    return images[torch.arange(size).clamp_max(len(images) - 1)] if len(images) < size else images


def _told(batches: Any, n: int, batch_size: int) -> Iterator[Any]:
    """`batches`, with a bar on the main process's terminal, else now and then a line in the log."""
    if not distributed.is_main():
        yield from batches
        return
    from tqdm import tqdm

    bar = tqdm(total=n, desc="features", unit="view", leave=False, disable=not sys.stderr.isatty())
    began = said = time.monotonic()
    with bar:
        for done, batch in enumerate(batches, start=1):
            yield batch
            bar.update(batch_size)
            now = time.monotonic()
            if bar.disable and now - said > _SAY_EVERY:
                views, said = min(done * batch_size, n), now
                left = (now - began) / views * (n - views) / 60
                logger.info("features: %d of %d views, %.1f minutes left", views, n, left)
