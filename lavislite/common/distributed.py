"""Processes, ranks and collectives; only this and `runners/strategy.py` speak torch.distributed.

Every function is right for a single process, which is the ordinary case: nothing has to be
initialised and nothing is sent. With several processes CPU tensors and Python objects travel over
gloo and CUDA tensors over NCCL, through one process group, so host integers never wait for the GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lavislite.common.errors import ConfigError, TrainingError
from lavislite.common.rng import rng_state, seed_everything, set_rng_state, shared_generator

__all__ = [
    "all_gather_objects",
    "all_reduce_sum",
    "barrier",
    "broadcast_object",
    "exchange_rows",
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

# ---- who am I


def is_distributed() -> bool:
    """More than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Number of this process on its own machine."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else 0


def is_main() -> bool:
    return rank() == 0


def is_local_main() -> bool:
    """True for one process per machine: the one that downloads and generates files."""
    return local_rank() == 0


# ---- start and stop


def launch_environment(environ: Mapping[str, str]) -> dict[str, str] | None:
    """What torch.distributed must know, from torchrun's or srun's variables; None for one process.

    `SLURM_STEP_NUM_TASKS` exists only in processes started by srun. (`SLURM_NTASKS` is also set in
    a batch script that runs a plain `python`, which must stay a single process.)
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        found = {key: environ[key] for key in ("RANK", "WORLD_SIZE")}
        found["LOCAL_RANK"] = environ.get("LOCAL_RANK", "0")
        found["MASTER_ADDR"] = environ.get("MASTER_ADDR", "127.0.0.1")
        found["MASTER_PORT"] = environ.get("MASTER_PORT", "29500")
    elif "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "127.0.0.1")
        job = int(environ.get("SLURM_JOB_ID", "0"))
        found = {
            "RANK": environ["SLURM_PROCID"],
            "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": environ.get("MASTER_ADDR", first_host(nodes)),
            # Two jobs on one node must not meet: the port follows from the job number.
            "MASTER_PORT": environ.get("MASTER_PORT", str(20000 + job % 20000)),
        }
    else:
        return None
    return found if int(found["WORLD_SIZE"]) > 1 else None


def first_host(nodelist: str) -> str:
    """First machine of a SLURM node list: ``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodelist)
    if match is None:
        raise ConfigError(
            f"Cannot read the SLURM node list '{nodelist}'. Set MASTER_ADDR yourself."
        )
    return match.group(1) + (match.group(2) or "")


def init_distributed(timeout_minutes: float = 30, device: str = "auto") -> None:
    """Join the other processes started by torchrun or srun; does nothing for a single process.

    Args:
        timeout_minutes: a collective that waits longer raises, so a dead rank ends the job.
        device: the run's `device` option; "cpu" keeps CUDA out of it.

    Raises:
        ConfigError: more processes than GPUs on this machine.
    """
    if dist.is_available() and dist.is_initialized():
        return
    found = launch_environment(os.environ)
    if found is None:
        return
    os.environ.update(found)
    use_cuda = torch.cuda.is_available() and device != "cpu"
    if use_cuda:
        torch.cuda.set_device(resolve_device(device))
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        init_method="env://",
        rank=int(found["RANK"]),
        world_size=int(found["WORLD_SIZE"]),
        timeout=timedelta(minutes=timeout_minutes),
    )


def shutdown() -> None:
    """Leave the process group, if there is one."""
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


def resolve_device(name: str) -> torch.device:
    """``auto`` -> this process's GPU, or the CPU; ``cuda`` -> this process's GPU; else as named.

    Raises:
        ConfigError: CUDA asked for and absent, or fewer GPUs than processes on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"run.device: '{name}' is not a device. Use auto, cpu, cuda or mps."
        ) from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(
            f"run.device: '{name}' asks for CUDA, which is not available. Use auto or cpu."
        )
    index = device.index if device.index is not None else local_rank()
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local_rank()} of this machine wants GPU {index}, but there are "
            f"{torch.cuda.device_count()}. Start at most one process per GPU."
        )
    return torch.device("cuda", index)


# ---- host side: objects and small integers


def barrier() -> None:
    """Wait for all processes (host only; does not wait for the GPU)."""
    max_int(0)


def max_int(n: int) -> int:
    """Largest `n` over the processes."""
    return max(_gather_ints(n))


def all_gather_objects(obj: Any) -> list[Any]:
    """The `obj` of every process, in rank order, on every process."""
    if not is_distributed():
        return [obj]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def broadcast_object(obj: Any) -> Any:
    """The main process's `obj` on every process."""
    if not is_distributed():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _gather_ints(n: int) -> list[int]:
    if not is_distributed():
        return [n]
    all_n = torch.empty(world_size(), dtype=torch.long)
    dist.all_gather_into_tensor(all_n, torch.tensor([n]))
    return [int(k) for k in all_n]


# ---- tensors


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over the processes, as a new tensor without gradient."""
    total = x.detach().clone()
    if is_distributed():
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
    counts = _gather_ints(x.shape[0])
    if len(set(counts)) > 1:
        raise TrainingError(
            f"The processes hold batches of different sizes ({counts}); they must be equal."
        )


def _all_gather(x: Tensor) -> Tensor:
    _check_equal_rows(x)
    whole = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
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
