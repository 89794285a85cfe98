"""Which samples are in which training batch: a function of the seed and the batch's number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lavislite.common.errors import ConfigError


@dataclass(frozen=True)
class Mixture:
    """Shuffled batches from one or several datasets, each batch from one of them.

    An epoch is as many full batches as all datasets together fill. It starts every dataset with a
    new permutation; a dataset drawn more often than it has samples goes on with another one.

    Attributes:
        sizes: samples per dataset.
        ratios: share of the batches, relative to each other; all None means by size.
        batch_size: samples in a batch of all processes together.

    Raises:
        ConfigError: a ratio is negative, or only some datasets have one.
    """

    sizes: tuple[int, ...]
    ratios: tuple[float | None, ...]
    batch_size: int
    seed: int

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
        return sum(self.sizes) // self.batch_size

    def batches_of(self) -> tuple[int, ...]:
        """How many of an epoch's batches each dataset gets; rounded so that the sum is right."""
        weights = self.sizes if None in self.ratios else self.ratios
        return _apportion(tuple(float(w or 0) for w in weights), self.batches_per_epoch)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Dataset and sample indices [batch_size] of batch `number`, counted through the run."""
        epoch, position = divmod(number, self.batches_per_epoch)
        order, ordinals = _order(self.batches_of(), self.seed, epoch)
        dataset = int(order[position])
        start = int(ordinals[position]) * self.batch_size
        return dataset, self._slice(dataset, epoch, start)

    def _slice(self, dataset: int, epoch: int, start: int) -> np.ndarray:
        """`batch_size` samples from `start` on, in the endless row of a dataset's permutations."""
        size, parts, wanted = self.sizes[dataset], [], self.batch_size
        while wanted > 0:
            turn, offset = divmod(start, size)
            part = _permutation(size, self.seed, epoch, dataset, turn)[offset : offset + wanted]
            parts.append(part)
            start, wanted = start + len(part), wanted - len(part)
        return np.concatenate(parts)


@lru_cache(maxsize=4)
def _apportion(weights: tuple[float, ...], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion to `weights` that add up to `total` (largest remainders)."""
    exact = np.asarray(weights) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def _order(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Dataset of each batch of an epoch, and the how-manieth batch of its dataset it is."""
    order = np.repeat(np.arange(len(counts)), counts)
    if len(counts) > 1:
        np.random.default_rng([seed, epoch]).shuffle(order)
    ordinals = np.zeros_like(order)
    for dataset in range(len(counts)):
        places = order == dataset
        ordinals[places] = np.arange(places.sum())
    return order, ordinals


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, epoch: int, dataset: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, dataset, turn]).permutation(size)
