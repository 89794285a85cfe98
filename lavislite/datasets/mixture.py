"""Which samples are in which training batch: a function of the seed and the batch's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lavislite.common.errors import ConfigError
from lavislite.datasets.window import Runs, WindowedOrder


@dataclass(frozen=True)
class Mixture:
    """Shuffled batches from one or several datasets, each batch from one of them.

    A round is as many full batches as all datasets together fill, shared out by ratio. Where it is
    an epoch, it starts every dataset with a new permutation; a dataset drawn more often than it has
    samples goes on with another one. Where `epoch` says how long an epoch is, permutations go on
    from one to the next: no sample comes again before all samples of its dataset came.

    Attributes:
        sizes: samples per dataset.
        ratios: share of the batches, relative to each other; all None means by size.
        batch_size: samples in a batch of all processes together.
        epoch: so many batches count as an epoch; None: a round.
        runs: per dataset, which samples lie in one archive, if it is to be read archive by archive;
            None or missing: shuffled as a whole.

    Raises:
        ConfigError: a ratio is negative, or only some datasets have one.
    """

    sizes: tuple[int, ...]
    ratios: tuple[float | None, ...]
    batch_size: int
    seed: int
    epoch: int | None = None
    runs: Sequence[Runs | None] = ()
    # One permutation per dataset, the latest: they are large, and batches are asked for in order.
    _orders: dict[int, tuple[tuple[int, int], Order]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        given = [ratio for ratio in self.ratios if ratio is not None]
        if given and len(given) < len(self.ratios):
            raise ConfigError(
                "datasets: some have a ratio and some have none. Give every training dataset a "
                "ratio, or none of them (then each is drawn in proportion to its size)."
            )
        if given and (min(given) < 0 or sum(given) == 0):
            raise ConfigError(f"datasets: ratios must be positive numbers; they are {given}.")

    @property
    def batches_per_epoch(self) -> int:
        return self._round if self.epoch is None else self.epoch

    @property
    def _round(self) -> int:
        return sum(self.sizes) // self.batch_size

    def batches_of(self) -> tuple[int, ...]:
        """How many of a round's batches each dataset gets; rounded so that the sum is right."""
        weights = self.sizes if None in self.ratios else self.ratios
        return _apportion(tuple(float(w or 0) for w in weights), self._round)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Dataset and sample indices [batch_size] of batch `number`, counted through the run."""
        dataset, epoch, start = self._place(number)
        return dataset, self._slice(dataset, epoch, start)

    def begun_next(self, number: int) -> tuple[int, float, float] | None:
        """What `WindowedOrder.begun_next` says before batch `number`; None for other orders."""
        dataset, epoch, start = self._place(number)
        turn, offset = divmod(start, self.sizes[dataset])
        return self._order(dataset, epoch, turn).begun_next(offset)

    def _place(self, number: int) -> tuple[int, int, int]:
        """Dataset of a batch, its epoch, and where the batch begins in the row of samples."""
        turn, position = divmod(number, self._round)
        counts = self.batches_of()
        order, ordinals = _shared_out(counts, self.seed, turn)
        dataset, ordinal = int(order[position]), int(ordinals[position])
        if self.epoch is not None:
            ordinal, turn = ordinal + turn * counts[dataset], 0
        return dataset, turn, ordinal * self.batch_size

    def _slice(self, dataset: int, epoch: int, start: int) -> np.ndarray:
        """`batch_size` samples from `start` on, in the endless row of a dataset's permutations."""
        size, parts, wanted = self.sizes[dataset], [], self.batch_size
        while wanted > 0:
            turn, offset = divmod(start, size)
            order = self._order(dataset, epoch, turn)
            part = order.take(offset, wanted)
            parts.append(order.by_archive(part))
            start, wanted = start + len(part), wanted - len(part)
        return np.concatenate(parts)

    def _order(self, dataset: int, epoch: int, turn: int) -> Order:
        if dataset in self._orders and self._orders[dataset][0] == (epoch, turn):
            return self._orders[dataset][1]
        self._orders.pop(dataset, None)  # before there are two
        seed = [self.seed, epoch, dataset, turn]
        runs = self.runs[dataset] if self.runs else None
        order: Order = WindowedOrder(runs, seed) if runs else _Shuffled(self.sizes[dataset], seed)
        self._orders[dataset] = (epoch, turn), order
        return order


class _Shuffled:
    """A permutation of `size` samples."""

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        order = np.random.default_rng(seed).permutation(size)
        self._order = order.astype(np.int32) if size < 2**31 else order  # half the memory

    def take(self, offset: int, wanted: int) -> np.ndarray:
        return self._order[offset : offset + wanted].astype(np.int64)

    def begun_next(self, _: int) -> None:
        return None

    def by_archive(self, samples: np.ndarray) -> np.ndarray:
        return samples


Order = _Shuffled | WindowedOrder


@lru_cache(maxsize=4)
def _apportion(weights: tuple[float, ...], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion to `weights` that add up to `total` (largest remainders)."""
    exact = np.asarray(weights) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return tuple(counts.tolist())


@lru_cache(maxsize=2)
def _shared_out(counts: tuple[int, ...], seed: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Dataset of each batch of a round, and the how-manieth batch of its dataset it is."""
    order = np.repeat(np.arange(len(counts)), counts)
    if len(counts) > 1:
        np.random.default_rng([seed, turn]).shuffle(order)
    ordinals = np.zeros_like(order)
    for dataset in range(len(counts)):
        places = order == dataset
        ordinals[places] = np.arange(places.sum())
    return order, ordinals
