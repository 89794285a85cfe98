"""Orders that use few archives at a time, and epochs that are counted in batches."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest

from lavislite.datasets.mixture import Mixture
from lavislite.datasets.window import Runs, WindowedOrder

STARTS = np.cumsum([0, 40, 25, 60, 1, 33, 50, 41, 37, 70, 20])
N = int(STARTS[-1])


def order(window: int, seed: int = 0) -> WindowedOrder:
    return WindowedOrder(Runs(STARTS, window), [seed, 1, 2])


def archive(samples: np.ndarray) -> np.ndarray:
    return np.searchsorted(STARTS, samples, side="right") - 1


@pytest.mark.parametrize("window", [1, 3, 10, 99])
def test_it_is_a_permutation_whatever_the_pieces(window: int) -> None:
    whole = order(window).take(0, N)
    assert sorted(whole.tolist()) == list(range(N))
    pieces = [order(window).take(start, 17) for start in range(0, N, 17)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(order(window).take(200, 30), whole[200:230])
    assert not np.array_equal(order(window, seed=1).take(0, N), whole)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_few_archives_are_in_use_and_each_only_once(window: int) -> None:
    archives, size = 20, 100
    rows = WindowedOrder(Runs(np.arange(0, archives * size + 1, size), window), [5])
    seen = rows.take(0, archives * size) // size
    used = 0
    for a in range(archives):
        places = np.flatnonzero(seen == a)
        circle = np.append(places, places[0] + len(seen))  # the end goes on at the beginning
        used += len(seen) - np.diff(circle).max()  # from the first to the last of its samples
    assert 0.8 * window <= used / len(seen) <= 1.1 * window
    mixed = [len(set(seen[i : i + size])) for i in range(0, len(seen), size)]
    assert np.mean(mixed) == pytest.approx(window + (window > 1), abs=1.0)


def test_a_window_over_all_archives_shuffles_them_as_a_whole() -> None:
    places = np.zeros(N)
    for seed in range(60):
        places[order(99, seed).take(0, N)] += np.arange(N) / (N - 1) / 60
    assert abs(places.mean() - 0.5) < 1e-9
    assert places.std() == pytest.approx(np.sqrt(1 / 12 / 60), rel=0.15)  # as if independent


def test_processes_that_share_a_batch_share_the_archives_too() -> None:
    starts = np.arange(0, 40 * 500 + 1, 500)
    rows = WindowedOrder(Runs(starts, 8), [3])
    met: list[set[int]] = [set(), set()]
    for start in range(0, 40 * 500, 160):
        batch = rows.by_archive(rows.take(start, 160))
        assert sorted(batch) == sorted(rows.take(start, 160))
        for rank, half in enumerate(np.split(batch, 2)):
            met[rank] |= set((half // 500).tolist())
    assert len(met[0]) + len(met[1]) < 1.5 * 40
    assert met[0] | met[1] == set(range(40))


def test_what_is_begun_next_is_told_before_it_is_needed() -> None:
    starts = np.arange(0, 12 * 100 + 1, 100)
    rows = WindowedOrder(Runs(starts, 3), [3])
    begun = set((rows.take(0, 50) // 100).tolist())
    for start in range(0, 1200, 50):
        told = rows.begun_next(start)
        begun |= set() if told is None else {told[0] // 100}
        assert set((rows.take(start, 50) // 100).tolist()) <= begun
    assert order(99).begun_next(0) is None


# ------------------------------------------------------------------------------------------ epochs


@pytest.mark.parametrize(
    ("sizes", "ratios", "batch", "seed", "digest"),
    [
        ((60, 20, 7), (1.0, 3.0, 2.0), 4, 5, "396e94717511e61a"),
        ((37, 11), (None, None), 6, 1, "e177a1fe314d4997"),
        ((1000,), (None,), 32, 42, "bcac39bc2288b2d1"),
    ],
)
def test_the_order_that_recorded_results_had(
    sizes: tuple, ratios: tuple, batch: int, seed: int, digest: str
) -> None:
    mixture, hashed = Mixture(sizes, ratios, batch, seed), blake2b(digest_size=8)
    for number in range(3 * mixture.batches_per_epoch):
        dataset, indices = mixture.batch(number)
        hashed.update(np.array([dataset, *indices], np.int64).tobytes())
    assert hashed.hexdigest() == digest


@pytest.mark.parametrize("runs", [None, Runs(np.array([0, 5, 20, 37]), 2)])
@pytest.mark.parametrize("epoch", [1, 4, 9, 100])
def test_epochs_of_so_many_batches_repeat_nothing_before_all_was_seen(
    epoch: int, runs: Runs | None
) -> None:
    mixture = Mixture((37,), (None,), 5, 0, epoch=epoch, runs=[runs])
    assert mixture.batches_per_epoch == epoch
    row = np.concatenate([mixture.batch(number)[1] for number in range(37)])
    for turn in range(5):
        assert sorted(row[37 * turn : 37 * (turn + 1)]) == list(range(37))
    assert not np.array_equal(row[:37], row[37:74])


def test_short_epochs_keep_the_ratios_in_the_long_run() -> None:
    mixture = Mixture((400, 90), (50.0, 1.0), 5, 0, epoch=3)
    drawn = Counter(mixture.batch(number)[0] for number in range(10 * 98))
    assert drawn == {0: 960, 1: 20}
    small = [i for n in range(10 * 98) for d, b in [mixture.batch(n)] if d == 1 for i in b]
    assert sorted(small[:90]) == list(range(90))


def test_only_the_latest_permutations_are_kept() -> None:
    mixture = Mixture((1000, 500), (None, None), 10, 0)
    for number in range(20 * mixture.batches_per_epoch):
        mixture.batch(number)
    assert len(mixture._orders) == 2
