"""Training batches are a function of the seed and their number, and of nothing else."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.loading import to_device
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.mixture import Mixture
from lavislite.datasets.samples import collate
from lavislite.datasets.workers import Parcel


class Noisy:
    """Samples whose content comes from all three random generators."""

    def __init__(self, n: int, name: str = "noisy", bad: tuple[int, ...] = ()) -> None:
        self.n, self.name, self.bad = n, name, bad
        self.dropped = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        if i in self.bad:
            return None
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return {"image": torch.tensor([float(i), *noise]), "index": i}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        self.dropped += samples.count(None)
        return torch.utils.data.default_collate([s for s in samples if s is not None])

    def record_id(self, i: int) -> str:
        return f"{self.name}#{i}"


def load(loader: TrainLoader, start: int, stop: int) -> torch.Tensor:
    return torch.stack([batch["image"] for batch in loader.batches(start, stop)])


def make(datasets: list[Noisy], batch_size: int = 4, **options: Any) -> TrainLoader:
    return TrainLoader(datasets, batch_size=batch_size, seed=1, pin_memory=False, **options)


def test_workers_and_starting_points_do_not_matter() -> None:
    whole = load(make([Noisy(18)]), 0, 9)
    assert torch.equal(load(make([Noisy(18)], num_workers=2), 3, 9), whole[3:])
    assert torch.equal(load(make([Noisy(18)]), 7, 9), whole[7:])


def test_an_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    loader = make([Noisy(16)])
    assert loader.batches_per_epoch == 4
    first, second = (load(loader, 4 * e, 4 * e + 4)[..., 0].flatten().tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


def test_a_sample_is_augmented_anew_in_every_epoch() -> None:
    x = load(make([Noisy(4)]), 0, 2)
    by_sample = x[:, :, 0].argsort(1)
    a, b = x[0][by_sample[0]], x[1][by_sample[1]]
    assert (a[:, 1:] != b[:, 1:]).all()


def test_processes_share_what_one_process_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(make([Noisy(16)], batch_size=8), 0, 4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(load(make([Noisy(16)], batch_size=4), 0, 4))
    assert torch.equal(torch.cat(halves, dim=1), whole)


def test_loading_here_does_not_touch_the_models_random_numbers() -> None:
    loader = make([Noisy(8)])
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    load(loader, 0, 2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states


def test_unreadable_samples_are_replaced_and_counted() -> None:
    dataset = Noisy(8, bad=(2, 3))
    loader = make([dataset])
    indices = load(loader, 0, 2)[..., 0].flatten().tolist()
    assert len(indices) == 8
    assert not {2, 3} & set(indices)
    assert dataset.dropped == 3  # 2 and its stand-in 3, and 3


def test_index_and_record_id_count_through_all_datasets() -> None:
    loader = make([Noisy(8, "a"), Noisy(8, "b")])
    for batch in loader.batches(0, 4):
        name = loader.record_id(int(batch["index"][0])).split("#")[0]
        own = batch["image"][:, 0].long()
        assert [loader.record_id(int(i)) for i in batch["index"]] == [f"{name}#{i}" for i in own]


def test_closing_early_ends_the_workers() -> None:
    batches = make([Noisy(64)], num_workers=1).batches(0, 16)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []


def test_workers_begin_before_the_first_batch_is_asked_for() -> None:
    batches = make([Noisy(64)], num_workers=1).batches(0, 16)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert multiprocessing.active_children() == []


class Tokens:
    """As a model's tokens: a value of its own kind, which knows how to travel."""

    def __init__(self, ids: torch.Tensor, made_by: int, device: str = "cpu") -> None:
        self.ids, self.made_by, self.device = ids, made_by, device

    def to(self, device: Any) -> Tokens:
        return Tokens(self.ids, self.made_by, str(device))


def tokenized(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "text_tokens": Tokens(batch["index"] * 10, os.getpid())}


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_prepared_where_they_are_loaded(workers: int) -> None:
    loader = make([Noisy(8), Noisy(8)], num_workers=workers)
    plain = load(loader, 0, 4)
    loader.prepare = tokenized
    batches = list(loader.batches(0, 4))
    assert torch.equal(torch.stack([batch["image"] for batch in batches]), plain)
    assert all(torch.equal(b["text_tokens"].ids, b["index"] * 10) for b in batches)
    assert {b["text_tokens"].made_by == os.getpid() for b in batches} == {workers == 0}
    moved = to_device({"in": [batches[0]["text_tokens"], "a text"]}, torch.device("meta"))
    assert moved["in"][0].device == "meta"
    assert moved["in"][1] == "a text"


def test_small_tensors_travel_in_the_message_and_large_ones_in_shared_memory() -> None:
    batch = {
        "image": torch.rand(2, 3, 100, 100),
        "index": torch.arange(2),
        "nested": [{"scalar": torch.tensor(0.5), "half": torch.ones(3, dtype=torch.bfloat16)}],
        "part": torch.arange(20_000)[:4],
        "text_input": ["a cat", "a dog"],
    }
    found = ForkingPickler.loads(ForkingPickler.dumps(Parcel(batch)))
    assert found["text_input"] == batch["text_input"]
    nested = found["nested"][0]
    sent = [(found[k], batch[k]) for k in ("image", "index", "part")]
    sent += [(nested[k], batch["nested"][0][k]) for k in ("scalar", "half")]
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in sent)
    shared = [found["image"], nested["half"]]
    assert all(value.is_shared() for value in shared)
    assert not any(v.is_shared() for v in (found["index"], found["part"], nested["scalar"]))
    found["index"] += 1  # not a view of something read-only


class Pixels(Noisy):
    """Pictures large enough to lie in shared memory."""

    def __getitem__(self, i: int) -> Any:
        return {"image": torch.full((3, 64, 64), float(i)), "index": i}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return {**collate(samples), "shared": collate(samples)["image"].is_shared()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_stacks_pictures_in_shared_memory_at_once(workers: int) -> None:
    for batch in make([Pixels(16)], num_workers=workers).batches(0, 2):
        assert batch["shared"] == (workers == 1)
        assert torch.equal(batch["image"][:, 0, 0, 0].long() % 16, batch["index"] % 16)


def counts(mixture: Mixture) -> list[int]:
    drawn = Counter(mixture.batch(n)[0] for n in range(mixture.batches_per_epoch))
    return [drawn[k] for k in range(len(mixture.sizes))]


def test_datasets_are_drawn_by_size_or_by_ratio() -> None:
    assert counts(Mixture((60, 20), (None, None), 4, 0)) == [15, 5]
    assert counts(Mixture((60, 20), (1.0, 3.0), 4, 0)) == [5, 15]
    assert counts(Mixture((60, 20), (1.0, 0.0), 4, 0)) == [20, 0]


def test_a_small_dataset_starts_again_and_again() -> None:
    mixture = Mixture((30, 6), (1.0, 1.0), 4, 0)
    seen = Counter()
    for number in range(mixture.batches_per_epoch):
        dataset, indices = mixture.batch(number)
        assert len(indices) == 4
        if dataset == 1:
            seen.update(indices.tolist())
    assert sorted(seen) == list(range(6))
    assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("ratios", [(1.0, None), (-1.0, 2.0), (0.0, 0.0)])
def test_ratios_that_make_no_sense_are_refused(ratios: tuple) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        Mixture((4, 4), ratios, 2, 0)


def test_too_few_samples_for_a_batch() -> None:
    with pytest.raises(DataError, match="noisy has 3"):
        make([Noisy(3)])


def test_an_epoch_may_be_so_many_batches() -> None:
    loader = make([Noisy(18)], batches_per_epoch=3)
    assert loader.batches_per_epoch == 3
    seen = load(loader, 0, 9)[..., 0].flatten().tolist()
    assert sorted(seen[:18]) == sorted(seen[18:]) == list(range(18))
    assert torch.equal(load(loader, 5, 9), load(make([Noisy(18)], batches_per_epoch=7), 5, 9))


def test_machines_that_see_other_data_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_gather_objects", lambda own: [own, "noisy has 17"])
    with pytest.raises(DataError, match="noisy has 18 in process 0; noisy has 17 in process 1"):
        make([Noisy(18)])


def test_a_large_gap_of_unreadable_samples_is_left_behind() -> None:
    loader = make([Noisy(4000, bad=tuple(range(3000)))], batch_size=40)
    indices = load(loader, 0, 5)[..., 0].flatten()
    assert len(indices) == 200
    assert indices.min() >= 3000


class Refusing(Noisy):
    def collate(self, samples: list[Any]) -> dict[str, Any]:
        raise DataError(f"{type(samples).__name__}: shapes differ")


def test_an_error_in_a_worker_is_one_sentence_and_ends_the_workers() -> None:
    with pytest.raises(DataError) as error:  # it keeps the traceback, and so the loader, alive
        list(make([Refusing(64)], num_workers=1).batches(0, 16))
    assert str(error.value) == "list: shapes differ"
    assert multiprocessing.active_children() == []


BROKEN_START = """
import sys
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.mixture import Mixture
from tests.datasets.test_loading import Noisy

def broken(*_):
    raise RuntimeError("no more of it")

Mixture.batch = broken
try:
    next(TrainLoader([Noisy(16)], batch_size=4, num_workers=2).batches(0, 4))
except RuntimeError as error:
    sys.last_exc = error  # as an interactive session or a debugger keeps it
print("over", flush=True)
"""


def test_an_error_while_the_workers_start_does_not_keep_the_process_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_START], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "over\n"
