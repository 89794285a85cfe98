"""One process is the ordinary case."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lavislite.common import distributed
from lavislite.common.errors import ConfigError


def test_every_collective_is_right_for_one_process() -> None:
    x = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    assert distributed.max_int(7) == 7
    assert distributed.all_gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.broadcast_object("x") == "x"
    assert torch.equal(distributed.gather_no_grad(x), x)
    assert not distributed.gather_no_grad(x).requires_grad
    assert torch.equal(distributed.gather_with_grad(x), x)
    assert torch.equal(distributed.all_reduce_sum(x), x)


def test_all_reduce_leaves_its_argument_alone() -> None:
    x = torch.ones(2)
    distributed.all_reduce_sum(x).add_(1)
    assert x.tolist() == [1, 1]


def test_exchange_rows_of_one_process_is_indexing() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    y = distributed.exchange_rows(x, torch.tensor([2, 0, 2]))
    (y * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert y.flatten().tolist() == [3, 1, 3]
    assert x.grad.flatten().tolist() == [10, 0, 101]


@pytest.mark.parametrize(
    ("world_size", "environ", "command"),
    [
        (1, {}, "python"),
        (8, {"SLURM_STEP_NUM_TASKS": "8"}, "srun python"),
        (
            8,
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8"},
            "torchrun --nproc-per-node=8",
        ),
        (
            8,
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4"},
            "torchrun --nnodes=2 ... --nproc-per-node=4",
        ),
    ],
)
def test_a_run_knows_how_it_was_launched(
    world_size: int, environ: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    assert distributed.launcher(environ) == command


def test_unknown_device_says_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"run\.device: 'gpu'.*auto, cpu, cuda"):
        distributed.resolve_device("gpu")


def draw() -> list[float]:
    return [
        random.random(),
        float(np.random.rand()),
        float(torch.rand(())),
        float(torch.rand((), generator=distributed.shared_generator())),
    ]


def test_random_states_come_back(tmp_path) -> None:
    distributed.seed_everything(3)
    draw()
    torch.save(distributed.rng_state(), tmp_path / "rng.pt")
    expected = draw()
    distributed.seed_everything(4)
    distributed.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == expected


def test_ranks_differ_except_in_what_they_share() -> None:
    distributed.seed_everything(3, rank=0)
    zero = draw()
    distributed.seed_everything(3, rank=1)
    one = draw()
    assert zero[:3] != one[:3]
    assert zero[3] == one[3]
