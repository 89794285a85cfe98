"""Training batches: which samples, with which augmentation, loaded by how many workers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lavislite.common import distributed
from lavislite.common.errors import DataError
from lavislite.datasets.ahead import one_ahead
from lavislite.datasets.mixture import Mixture
from lavislite.datasets.workers import Parcel, remembered_workers, start_worker

Batch = dict[str, Any]
Prepare = Callable[[Batch], Batch]
_TRIES = 20  # neighbours looked at first for one unreadable sample


class TrainLoader:
    """Training batches of one or several datasets, numbered through the whole run.

    Batch k is a function of the seed and of k: which samples, in which order, how augmented. So a
    run that resumes gets the batches it would have got, with any number of worker processes; and W
    processes with B samples each see together what one process with W*B samples sees.

    Every batch is full, on every process: an unreadable sample is replaced by the next readable one
    of its dataset (and still counted by the dataset). ``batch["index"]`` counts through all
    datasets; `record_id` names it.

    Args:
        datasets: map-style, with `name`, `collate` and `record_id`; each batch comes from one.
        ratios: how often each is drawn, relative to the others; None means by its size.
        batch_size: samples per process.
        num_workers: processes that load; 0 loads in this one.
        batches_per_epoch: so many count as an epoch; None: as many as all data fill. See `Mixture`.
        seed: of order and augmentation.
        pin_memory: makes copies to a GPU asynchronous; None means if there is one.

    Attributes:
        prepare: what else is done to a batch where it is loaded, such as tokenizing its texts. A
            picklable function of the batch, or None. Set it before the first batch is asked for.

    Raises:
        DataError: the datasets are too small for a single batch, or have other sizes in another
            process.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        ratios: Sequence[float | None] | None = None,
        *,
        batch_size: int,
        num_workers: int = 0,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        self._datasets = list(datasets)
        self._batch_size, self._num_workers, self._seed = batch_size, num_workers, seed
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.prepare: Prepare | None = None
        self._offsets = np.cumsum([0] + [len(d) for d in self._datasets]).tolist()
        world = distributed.world_size()
        self._mixture = Mixture(
            sizes=tuple(len(d) for d in self._datasets),
            ratios=tuple(ratios) if ratios is not None else (None,) * len(self._datasets),
            batch_size=batch_size * world,
            seed=seed,
            epoch=batches_per_epoch,
            runs=[getattr(d, "runs", None) for d in self._datasets],
        )
        sizes = ", ".join(f"{d.name} has {len(d)}" for d in self._datasets)
        _check_same(sizes)
        self.batches_per_epoch = self._mixture.batches_per_epoch
        if sum(self._mixture.sizes) < batch_size * world:
            raise DataError(
                f"Too few samples for one batch of {batch_size} x {world} process(es): {sizes}. "
                "Lower run.batch_size_train."
            )

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's share of batches `start` to `stop` - 1.

        Workers begin with them now, before the first one is asked for; closing ends the workers.
        """
        fetch = _Fetch(self._datasets, self._offsets, self.prepare)
        if self._num_workers == 0 or stop <= start:
            return (fetch[request] for request in self._requests(start, stop))
        batches = _received(self._workers(fetch, start, stop), pinned=self._pin_memory)
        next(batches)  # a generator that has not begun would not clean up
        return batches

    def _workers(self, fetch: _Fetch, start: int, stop: int) -> Any:
        """The iterator of a DataLoader, whose processes have been started."""
        # A forked process lacks the threads that a tokenizer may have started here.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with remembered_workers():
            return iter(
                DataLoader(
                    fetch,
                    sampler=_Requests(self, start, stop),
                    batch_size=None,  # a request is a whole batch
                    collate_fn=Parcel,
                    num_workers=self._num_workers,
                    pin_memory=self._pin_memory,
                    prefetch_factor=4,
                    worker_init_fn=start_worker,
                    generator=torch.Generator().manual_seed(0),  # else from the global one
                )
            )

    @property
    def bad_records(self) -> int:
        """How many records this process and its workers have found unreadable so far."""
        return sum(getattr(dataset, "bad_records", 0) for dataset in self._datasets)

    def record_id(self, index: int) -> str:
        """Name of sample `index` of a batch, for messages."""
        k = int(np.searchsorted(self._offsets, index, side="right")) - 1
        return str(self._datasets[k].record_id(index - self._offsets[k]))

    def _requests(self, start: int, stop: int) -> Iterator[Request]:
        own = distributed.rank() * self._batch_size
        asked: dict[int, int | None] = {}  # of which sample the file was asked for in advance
        for number in range(start, stop):
            ahead = self._begun_next(number)
            dataset, indices = self._mixture.batch(number)
            mine = indices[own : own + self._batch_size].tolist()
            first = number * self._mixture.batch_size + own
            seeds = [_mix(self._seed, first + i) for i in range(len(mine))]
            yield Request(dataset, mine, seeds, None if ahead == asked.get(dataset) else ahead)
            asked[dataset] = ahead

    def _begun_next(self, number: int) -> int | None:
        """A sample of the archive that this process will soon begin, if it reads archives."""
        found = self._mixture.begun_next(number)
        if found is None:
            return None
        sample, low, high = found
        rank, world = distributed.rank(), distributed.world_size()
        return sample if low * world < rank + 1 and high * world > rank else None


@dataclass(frozen=True)
class Request:
    """One batch of one process: the samples of one dataset, and a seed for each.

    `ahead` is a sample of an archive that later batches will need.
    """

    dataset: int
    indices: list[int]
    seeds: list[int]
    ahead: int | None = None


class _Requests:
    """A sampler, for DataLoader, that yields whole batches."""

    def __init__(self, loader: TrainLoader, start: int, stop: int) -> None:
        self._loader, self._start, self._stop = loader, start, stop

    def __iter__(self) -> Iterator[Request]:
        return self._loader._requests(self._start, self._stop)

    def __len__(self) -> int:
        return self._stop - self._start


class _Fetch(TorchDataset):
    """Turns requests into batches, in a worker or in the main process."""

    def __init__(
        self, datasets: Sequence[Any], offsets: Sequence[int], prepare: Prepare | None
    ) -> None:
        self._datasets, self._offsets, self._prepare = datasets, offsets, prepare

    def __getitem__(self, request: Request) -> Batch:
        dataset = self._datasets[request.dataset]
        if request.ahead is not None:
            dataset.bring(request.ahead)
        samples: list[Any] = []
        with _own_random_states():
            for index, seed in zip(request.indices, request.seeds, strict=True):
                _seed(seed)
                samples += _readable(dataset, index)
            batch = dataset.collate(samples)
            if "index" in batch:
                batch["index"] = batch["index"] + self._offsets[request.dataset]
            return batch if self._prepare is None else self._prepare(batch)


def _received(loader: Any, *, pinned: bool) -> Generator[Batch, None, None]:
    """An empty batch, then what the workers of `loader` send, one batch ahead."""
    try:
        yield {}
        yield from loader if pinned else one_ahead(loader)
    finally:
        # The traceback of an error keeps the loader alive, and the workers heed no SIGTERM: a
        # process that leaves them to its exit would wait for them forever.
        loader._shutdown_workers()


def _check_same(sizes: str) -> None:
    """Every process has the same data; with other data, the same number is another batch."""
    for rank, others in enumerate(distributed.all_gather_objects(sizes)):
        if others != sizes:
            raise DataError(
                f"The processes have different data: {sizes} in process {distributed.rank()}; "
                f"{others} in process {rank}. Do their machines see the same files?"
            )


def _readable(dataset: Any, index: int) -> list[Any]:
    """Sample `index`; or, if it is None, that None (to be counted) and the next one that is not."""
    samples = []
    for step in _steps(len(dataset)):
        sample = dataset[(index + step) % len(dataset)]
        samples.append(sample)
        if sample is not None:
            break
    return samples


def _steps(size: int) -> Iterator[int]:
    """Neighbours first; then further and further away, as whole archives may be unreadable."""
    yield from range(min(_TRIES, size))
    step = _TRIES
    while step < size:
        yield step
        step += max(1, step // 4)


@contextmanager
def _own_random_states() -> Iterator[None]:
    """Loading in the main process must not disturb its dropout."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would also restart the GPU's generator, which is the model's.
    torch.default_generator.manual_seed(seed)


def _mix(seed: int, position: int) -> int:
    """An unrelated 63-bit number for every pair."""
    digest = blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
