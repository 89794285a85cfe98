"""An order that is shuffled, yet uses only a few archives at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """Samples that lie together: number `starts[a]` up to `starts[a + 1]` in archive `a`.

    Attributes:
        starts: [archives + 1], increasing.
        window: so many archives are in use at any time.
    """

    starts: np.ndarray
    window: int


class WindowedOrder:
    """A permutation of the samples of `runs` in which every archive is used only for a while.

    The archives are put on a circle in random order, and each sample of the archive at place p at a
    random spot between p and p + window; read around the circle, the samples of `window`
    archives are mixed at any spot, and one archive at a time is done with and the next begun. With
    a window as wide as the circle this is a plain shuffle.

    Spots are drawn from the seed whenever they are needed, so that memory holds those of a few
    archives, however many samples there are.

    Args:
        seed: what the order follows from.
    """

    def __init__(self, runs: Runs, seed: Sequence[int]) -> None:
        self._starts, self._seed = runs.starts, list(seed)
        self._n = len(runs.starts) - 1
        self._window = min(runs.window, self._n)
        self._archives = np.random.default_rng(self._seed).permutation(self._n)
        counts = np.zeros(self._n, np.int64)  # of samples, between one place and the next
        steps = np.arange(self._window)
        for place in range(self._n):
            within = self._spots(place).astype(np.int64)
            counts[(place + steps) % self._n] += np.bincount(within, minlength=self._window)
        self._ends = np.cumsum(counts)
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def take(self, offset: int, wanted: int) -> np.ndarray:
        """The next `wanted` samples from position `offset` on; fewer at the end."""
        parts = [np.empty(0, np.int64)]
        stop = min(offset + wanted, int(self._ends[-1]))
        while offset < stop:
            place = int(np.searchsorted(self._ends, offset, side="right"))
            end = int(self._ends[place])
            samples = self._between(place)
            parts.append(samples[len(samples) - (end - offset) :][: stop - offset])
            offset += len(parts[-1])
        return np.concatenate(parts)

    def begun_next(self, offset: int) -> tuple[int, float, float] | None:
        """A sample of the archive that is begun after position `offset`, if there is another one.

        Also between which parts of a batch `by_archive` puts it, in fractions of the batch.
        """
        place = int(np.searchsorted(self._ends, offset, side="right")) + 1
        if place >= self._n or self._window == self._n:
            return None
        slot = place % self._window
        first = int(self._starts[self._archives[place]])
        return first, slot / self._window, (slot + 1) / self._window

    def by_archive(self, samples: np.ndarray) -> np.ndarray:
        """The same samples with those of an archive side by side.

        Archives keep their place relative to the others in use for as long as they are in use. So
        when processes share out a batch from left to right, each meets only some of the archives.
        """
        archive = np.searchsorted(self._starts, samples, side="right") - 1
        place = np.empty_like(self._archives)
        place[self._archives] = np.arange(self._n)
        return samples[np.argsort(place[archive] % self._window, kind="stable")]

    def _spots(self, place: int) -> np.ndarray:
        """[samples of the archive at `place`] how far behind that place each sample comes."""
        archive = int(self._archives[place])
        size = int(self._starts[archive + 1] - self._starts[archive])
        return np.random.default_rng([*self._seed, archive]).random(size) * self._window

    def _between(self, place: int) -> np.ndarray:
        """The samples between `place` and the next one, in order."""
        if self._last[0] != place:
            samples, spots = [], []
            for step in range(self._window):
                at = (place - step) % self._n
                found = self._spots(at)
                chosen = np.flatnonzero(found.astype(np.int64) == step)
                samples.append(chosen + self._starts[self._archives[at]])
                spots.append(found[chosen] - step)
            order = np.argsort(np.concatenate(spots), kind="stable")
            self._last = place, np.concatenate(samples)[order]
        return self._last[1]
