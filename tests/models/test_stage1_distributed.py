"""Two processes with half the batch each are one process with all of it."""

from __future__ import annotations

import multiprocessing
import os
import socket
from typing import Any

import pytest
import torch
from torch import Tensor

from lavislite.common import distributed

from .reference import reference_batch, reference_model, reference_negatives

CASES = ["eva_frozen", "eva_frozen_image_id", "drawn", "short captions"]


def step(case: str, rank: int, world: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of this process's share."""
    torch.set_num_threads(1)
    distributed.seed_everything(3, rank=rank)
    tag = "eva_frozen_image_id" if case == "eva_frozen_image_id" else "eva_frozen"
    model, batch = reference_model().train(), reference_batch(tag)
    if case == "short captions":  # the processes pad to different lengths, and negatives mix them
        batch["text_input"] = ["a cat", "two dogs", "an old man eating pizza", "a red bus"]
        batch["image_id"] = torch.tensor([1, 1, 2, 1])
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    samples = {key: value[mine] for key, value in batch.items()}
    negatives = None
    if case.startswith("eva"):
        negatives = tuple(rows[mine] for rows in reference_negatives(tag))
    out = model(samples, negatives)
    out["loss"].backward()
    losses = {name: loss.item() for name, loss in out.items()}
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _child(rank: int, world: int, port: int, queue: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_distributed(timeout_minutes=1, device="cpu")
    results = {}
    for case in CASES:
        losses, grads = step(case, rank, world)
        results[case] = losses, {name: grad.numpy() for name, grad in grads.items()}
    queue.put((rank, results))
    distributed.barrier()
    distributed.shutdown()


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    # Not plain fork: the children use autograd, and this process may have done so before.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm.models.eva", "transformers.models.bert", "torch"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    jobs = [context.Process(target=_child, args=(r, 2, port, queue)) for r in range(2)]
    for job in jobs:
        job.start()
    try:
        results = dict(queue.get(timeout=60) for _ in jobs)
    finally:
        for job in jobs:
            job.join(timeout=5)
            job.kill()
    return [results[0], results[1]]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, two_processes: list[dict[str, Any]]) -> None:
    losses, grads = step(case, 0, 1)
    (losses0, grads0), (losses1, grads1) = (result[case] for result in two_processes)
    mean = {name: (losses0[name] + losses1[name]) / 2 for name in losses}
    assert mean == pytest.approx(losses, rel=1e-5)
    assert grads0.keys() == grads.keys()
    for name, grad in grads.items():
        found = torch.from_numpy(grads0[name] + grads1[name]) / 2
        assert (found - grad).norm() <= 1e-4 * grad.norm() + 1e-5, name
