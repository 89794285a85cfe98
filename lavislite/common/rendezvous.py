"""How the processes of one job find each other, and only each other.

A launcher that starts the processes again may keep its key-value store, with what the processes
before have left in it. So the main process gives each attempt a name, and answers those that greet
it: whoever has an answer to its own greeting talks to a living process of its own attempt.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lavislite.common.errors import TrainingError
from lavislite.common.heartbeat import ranks
from lavislite.common.logging import get_logger

logger = get_logger(__name__)

_PERIOD = 0.05  # seconds
_CONNECT = 10.0  # seconds for one try
_LAUNCHER = 60.0  # seconds for a launcher's store, which is there before the processes are


@dataclass(frozen=True)
class Meeting:
    """Where the processes of this attempt meet.

    Attributes:
        store: key-value store of this attempt alone.
        reconnect: another connection to it.
        hosts: it lives in this process.
    """

    store: Any
    reconnect: Callable[[], Any]
    hosts: bool


def meet(
    found: Mapping[str, str],
    warn_seconds: float,
    timeout_seconds: float,
    orphaned: Callable[[], bool] = lambda: False,
) -> Meeting:
    """Wait until all processes are there. After `warn_seconds` say who is missing.

    Args:
        found: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
        orphaned: whether this process's launcher has gone.

    Raises:
        TrainingError: some are still missing after `timeout_seconds`; names them. Or the store,
            or the launcher, has gone.
    """
    rank, world = int(found["RANK"]), int(found["WORLD_SIZE"])
    host, port = found["MASTER_ADDR"], int(found["MASTER_PORT"])
    launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = rank == 0 and not launched
    patience = _Patience(rank, warn_seconds, timeout_seconds, orphaned)
    at_first = min(_LAUNCHER, timeout_seconds) if launched else timeout_seconds

    def connect() -> Any:
        wait = timedelta(seconds=_CONNECT)
        return dist.TCPStore(host, port, None, hosts, wait, wait_for_workers=False)

    where = f"the launcher or rank 0 at {host}:{port}"
    store = _connected(connect, _Patience(rank, warn_seconds, at_first, orphaned), where)
    try:
        attempt = _gather(store, world, patience) if rank == 0 else _greet(store, rank, patience)
    except dist.DistError as error:
        raise TrainingError(f"Rank {rank} has lost {where}: {_first_line(error)}") from error

    def reconnect() -> Any:
        wait = timedelta(seconds=_CONNECT)
        again = dist.TCPStore(host, port, None, False, wait, wait_for_workers=False)
        return dist.PrefixStore(attempt, again)

    return Meeting(dist.PrefixStore(attempt, store), reconnect, hosts)


class _Patience:
    """Says once, after a while, what is waited for; and gives up after a longer one."""

    def __init__(
        self,
        rank: int,
        warn_seconds: float,
        timeout_seconds: float,
        orphaned: Callable[[], bool],
    ) -> None:
        self._rank, self._orphaned = rank, orphaned
        self._warn_at = time.monotonic() + warn_seconds
        self._until = time.monotonic() + timeout_seconds

    def wait(self, missing: str) -> None:
        if self._orphaned():
            raise TrainingError(f"The launcher of rank {self._rank} has gone; it ends with it.")
        if time.monotonic() >= self._until:
            raise TrainingError(f"Rank {self._rank} has waited in vain for {missing}.")
        if time.monotonic() >= self._warn_at:
            self._warn_at = float("inf")
            logger.error("Rank %d waits for %s.", self._rank, missing)
        time.sleep(_PERIOD)


def _connected(connect: Callable[[], Any], patience: _Patience, where: str) -> Any:
    while True:
        try:
            return connect()
        except dist.DistError as error:  # not there yet; or the port is still taken
            patience.wait(f"{where} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _gather(store: Any, world: int, patience: _Patience) -> str:
    """On the main process: answer every greeting until all have heard the name of this attempt."""
    attempt = f"attempt-{uuid.uuid4().hex}"
    answered: dict[int, str] = {}
    missing = list(range(1, world))
    while missing:
        for r in missing:
            if store.check([f"hello/{r}"]):
                greeting = store.get(f"hello/{r}").decode()
                if answered.get(r) != greeting:  # the first may be of a process that has died
                    store.set(f"answer/{greeting}", attempt)
                    answered[r] = greeting
        missing = [r for r in missing if not store.check([f"{attempt}/{r}"])]
        if missing:
            patience.wait(f"{ranks(missing)} to start")
    return attempt


def _greet(store: Any, rank: int, patience: _Patience) -> str:
    """On the others: the name of the attempt, from a main process that is alive now."""
    greeting = uuid.uuid4().hex
    store.set(f"hello/{rank}", greeting)
    while not store.check([f"answer/{greeting}"]):
        patience.wait("rank 0 to start")
    attempt: str = store.get(f"answer/{greeting}").decode()
    store.set(f"{attempt}/{rank}", "")
    return attempt
