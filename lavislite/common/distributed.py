"""Processes, ranks and collectives; few others speak torch.distributed (see test_layering.py).

Every function is right for a single process, which is the ordinary case: nothing has to be
initialised and nothing is sent. With several processes CPU tensors and Python objects travel over
gloo and CUDA tensors over NCCL, through one process group, so host integers never wait for the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lavislite.common import heartbeat
from lavislite.common.devices import local_rank, resolve_device
from lavislite.common.errors import TrainingError
from lavislite.common.failing import watched
from lavislite.common.launch import launch_environment, launcher_has_gone
from lavislite.common.rendezvous import meet
from lavislite.common.rng import rng_state, seed_everything, set_rng_state, shared_generator
from lavislite.common.watch import Watch

__all__ = [
    "all_gather_objects",
    "all_reduce_sum",
    "barrier",
    "broadcast_object",
    "exchange_rows",
    "failing_together",
    "gather_ints",
    "gather_no_grad",
    "gather_with_grad",
    "init_distributed",
    "is_distributed",
    "is_local_main",
    "is_main",
    "launcher",
    "local_rank",
    "max_int",
    "rank",
    "resolve_device",
    "rng_state",
    "seed_everything",
    "set_rng_state",
    "shared_generator",
    "shutdown",
    "world_size",
]

_watch: Watch | None = None

# ---- who am I


def is_distributed() -> bool:
    """More than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    return rank() == 0


def is_local_main() -> bool:
    """True for one process per machine: the one that downloads and generates files."""
    return local_rank() == 0


# ---- start and stop


def init_distributed(
    timeout_minutes: float = 30, device: str = "auto", warn_seconds: float = 60
) -> None:
    """Join the other processes started by torchrun or srun; does nothing for a single process.

    From then on a watch beside each process sees to it that none waits for ever: see
    `failing_together` and `common/watch.py`.

    Args:
        timeout_minutes: when nothing gets on for so long, the job ends.
        device: the run's `device` option; "cpu" keeps CUDA out of it.
        warn_seconds: when nothing gets on for so long, one process says who waits for whom.

    Raises:
        ConfigError: more processes than GPUs on this machine.
        TrainingError: some of the processes have not come.
    """
    global _watch
    if dist.is_available() and dist.is_initialized():
        return
    found = launch_environment(os.environ)
    if found is None:
        return
    os.environ.update(found)
    use_cuda = torch.cuda.is_available() and device != "cpu"
    if use_cuda:
        torch.cuda.set_device(resolve_device(device))
    orphaned = launcher_has_gone(os.environ)
    meeting = meet(found, warn_seconds, timeout_minutes * 60, orphaned)
    _watch = Watch(
        meeting.store,
        rank=int(found["RANK"]),
        world_size=int(found["WORLD_SIZE"]),
        progress=heartbeat.PROGRESS,
        warn_seconds=warn_seconds,
        timeout_seconds=timeout_minutes * 60,
        reconnect=meeting.reconnect,
        speaks=is_local_main(),
        hosts=meeting.hosts,
        orphaned=orphaned,
    )
    _watch.start()
    with heartbeat.waiting():
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if use_cuda else "gloo",
            store=meeting.reconnect(),
            rank=int(found["RANK"]),
            world_size=int(found["WORLD_SIZE"]),
            # The watch, which knows who is missing, speaks first.
            timeout=timedelta(minutes=timeout_minutes + 1),
        )


def failing_together() -> AbstractContextManager[None]:
    """Surrounds a command: an error of one process ends all of them, within seconds.

    An error that all raise alike has a true attribute `shared`; one that a process should print
    gets a true attribute `own_rank`.

    Raises:
        SystemExit: another process has failed; what it said is printed.
    """
    return watched(_watch)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def launcher(environ: Mapping[str, str]) -> str:
    """How the processes of this run were started, for a command line: ``torchrun ...`` or so."""
    if world_size() == 1:
        return "python"
    if "TORCHELASTIC_RUN_ID" not in environ:
        return "srun python"
    machines = world_size() // int(environ["LOCAL_WORLD_SIZE"])
    several = f"--nnodes={machines} ... " if machines > 1 else ""
    return f"torchrun {several}--nproc-per-node={environ['LOCAL_WORLD_SIZE']}"


# ---- host side: objects and small integers


def barrier() -> None:
    """Wait for all processes (host only; does not wait for the GPU)."""
    max_int(0)


def max_int(n: int) -> int:
    """Largest `n` over the processes."""
    return max(gather_ints(n))


def all_gather_objects(obj: Any) -> list[Any]:
    """The `obj` of every process, in rank order, on every process."""
    if not is_distributed():
        return [obj]
    gathered: list[Any] = [None] * world_size()
    with heartbeat.waiting():
        dist.all_gather_object(gathered, obj)
    return gathered


def broadcast_object(obj: Any) -> Any:
    """The main process's `obj` on every process."""
    if not is_distributed():
        return obj
    box = [obj]
    with heartbeat.waiting():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_ints(n: int) -> list[int]:
    """The `n` of every process, in rank order, on every process (host only)."""
    if not is_distributed():
        return [n]
    all_n = torch.empty(world_size(), dtype=torch.long)
    with heartbeat.waiting():
        dist.all_gather_into_tensor(all_n, torch.tensor([n]))
    return [int(k) for k in all_n]


# ---- tensors


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over the processes, as a new tensor without gradient."""
    total = x.detach().clone()
    if is_distributed():
        with heartbeat.waiting():
            dist.all_reduce(total)
    return total


def gather_no_grad(x: Tensor) -> Tensor:
    """[b, ...] on each process -> [W*b, ...], rank after rank, on all of them; no gradient."""
    x = x.detach()
    return _all_gather(x) if is_distributed() else x


def gather_with_grad(x: Tensor) -> Tensor:
    """[b, ...] on each process -> [W*b, ...] on all of them; gradients return to the row's owner.

    A row's gradient is the *sum* over the processes that used it. With each process's loss a mean
    over its own rows, DDP's averaging then yields the gradient of the mean over the whole batch.
    """
    return _GatherWithGrad.apply(x) if is_distributed() else x


def exchange_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of the concatenation of `x` over all processes; only the wanted rows travel.

    Args:
        x: [b, ...] this process's rows; process r owns the global rows r*b to (r+1)*b - 1.
        index: LongTensor [n], global row numbers; may differ between processes and may repeat.

    Returns:
        [n, ...]; gradients are summed and return to the process that owns the row.
    """
    return _ExchangeRows.apply(x, index) if is_distributed() else x[index]


def _check_equal_rows(x: Tensor) -> None:
    """All ranks learn all counts, so all raise: unequal batches would otherwise hang."""
    counts = gather_ints(x.shape[0])
    if len(set(counts)) > 1:
        raise TrainingError(
            f"The processes hold batches of different sizes ({counts}); they must be equal."
        )


def _all_gather(x: Tensor) -> Tensor:
    _check_equal_rows(x)
    whole = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
    with heartbeat.waiting():
        dist.all_gather_into_tensor(whole, x.contiguous())
    return whole


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty(ctx.rows, *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        _check_equal_rows(x)
        rows, world = x.shape[0], world_size()
        # Split sizes of an all-to-all are host integers: this copy is the one wait for the device.
        wanted = index.cpu()
        owner = torch.div(wanted, rows, rounding_mode="floor")
        order = torch.argsort(owner, stable=True)
        receive = torch.bincount(owner, minlength=world)
        send = torch.empty_like(receive)
        dist.all_to_all_single(send, receive)
        ctx.receive, ctx.send = receive.tolist(), send.tolist()
        asked = torch.empty(sum(ctx.send), dtype=torch.long)
        dist.all_to_all_single(
            asked,
            (wanted % rows)[order],
            output_split_sizes=ctx.send,
            input_split_sizes=ctx.receive,
        )
        ctx.rows = rows
        asked, order = asked.to(x.device), order.to(x.device)
        ctx.save_for_backward(asked, order)
        arrived = _all_to_all(x[asked], ctx.receive, ctx.send)
        out = torch.empty_like(arrived)
        out[order] = arrived
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        asked, order = ctx.saved_tensors
        returned = _all_to_all(grad[order], ctx.send, ctx.receive)
        own = grad.new_zeros(ctx.rows, *grad.shape[1:])
        return own.index_add_(0, asked, returned), None


def _all_to_all(x: Tensor, receive: list[int], send: list[int]) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), output_split_sizes=receive, input_split_sizes=send)
    return out
