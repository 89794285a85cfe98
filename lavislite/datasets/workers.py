"""The life of the processes that load, and how their batches travel."""

from __future__ import annotations

import atexit
import io
import multiprocessing
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from lavislite.common.allocator import give_memory_back


def start_worker(worker: int) -> None:
    """What a loading process does first; for DataLoader's `worker_init_fn`."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The main process finishes its
    # step and then ends the workers; a worker that died first would tear it down in mid-step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    give_memory_back(worker)


# ---- batches


_SMALL = 1 << 16  # bytes
_PLAIN = {torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64}


class Parcel:
    """What a worker sends instead of its batch; the batch is what arrives.

    Large tensors lie in shared memory, as torch does it, each with a handshake between the
    processes, for which the training process would wait. Small ones travel in the message.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        message = io.BytesIO()
        _Pickler(message).dump(self._batch)
        return pickle.loads, (message.getvalue(),)


class _Pickler(ForkingPickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and _is_small(value):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _is_small(value: torch.Tensor) -> bool:
    plain = value.is_cpu and value.layout is torch.strided and not value.requires_grad
    return plain and value.dtype in _PLAIN and value.nbytes <= _SMALL


# ---- processes


_workers: set[Any] = set()


@contextmanager
def remembered_workers() -> Iterator[None]:
    """Notes the processes that are started inside, also when an error ends this."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        alive = set(multiprocessing.active_children())
        _workers.intersection_update(alive)
        _workers.update(alive - before)


@atexit.register
def _end_workers() -> None:
    """At its end Python would wait for ever for workers that an error's traceback keeps alive.

    They heed no SIGTERM: see `start_worker`.
    """
    if any(worker.is_alive() for worker in _workers):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call it a crash
        for worker in _workers:
            worker.kill()
