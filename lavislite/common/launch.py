"""What a launcher's environment variables say: who starts together, and whether again."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lavislite.common.errors import ConfigError


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


@dataclass(frozen=True)
class Launch:
    """What this start has in common with other starts of the same job.

    Attributes:
        names: of the job, as torchrun and SLURM know it; none for a plain ``python``.
        before: those of `names` under which an earlier start may have worked on the same run.
        restarted: the launcher says that there was an earlier start.
    """

    names: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    restarted: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Launch:
        """A torchrun is known by its --rdzv-id, which a user may give again; or by its process.

        Within one SLURM job the same project may be trained twice on purpose; only a job that
        SLURM has requeued looks for what it did before.
        """
        names = []
        if "TORCHELASTIC_RUN_ID" in environ:
            run_id = environ["TORCHELASTIC_RUN_ID"]
            names.append(f"torchrun {run_id if run_id != 'none' else _parent()}")
        before = list(names)
        requeued = int(environ.get("SLURM_RESTART_COUNT") or 0) > 0
        if "SLURM_JOB_ID" in environ:
            names.append(f"slurm {environ['SLURM_JOB_ID']}")
            before = names if requeued else before
        again = int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0
        return cls(tuple(names), tuple(before), requeued or again)


def launcher_has_gone(environ: Mapping[str, str]) -> Callable[[], bool]:
    """A question to ask later: whether the torchrun that started this process has ended.

    Its processes live on when it is killed, and would be in the way of a new start. (srun's do not;
    and that the shell has ended which a plain ``python`` was started from is nothing unusual.)
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return lambda: False
    parent = os.getppid()
    return lambda: os.getppid() != parent


def _parent() -> str:
    """The parent process, unlike any other that had its number."""
    pid = os.getppid()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return f"{socket.gethostname()}:{pid}"
    began = stat.rpartition(")")[2].split()[19]  # field 22, after the name, which may have blanks
    return f"{socket.gethostname()}:{pid}:{began}"
