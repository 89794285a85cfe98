"""The processes of one attempt find each other, whatever others have left in the store."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from lavislite.common.errors import TrainingError
from lavislite.common.rendezvous import Meeting, meet


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store that a launcher keeps for all attempts."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    wait = timedelta(seconds=10)
    return dist.TCPStore("127.0.0.1", 0, None, True, wait, wait_for_workers=False)


def join(server: Any, rank: int, world: int, warn: float = 60, timeout: float = 30) -> Meeting:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    return meet({"RANK": str(rank), "WORLD_SIZE": str(world), **where}, warn, timeout)


def attempt(server: Any, world: int = 3) -> list[Meeting]:
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: join(server, rank, world), range(world)))


def test_every_attempt_has_keys_of_its_own(server: Any) -> None:
    first = attempt(server)
    first[0].store.set("key", "of the first")
    assert first[2].store.get("key") == b"of the first"
    second = attempt(server)
    assert not second[1].store.check(["key"])
    second[1].store.set("key", "of the second")
    assert second[0].reconnect().get("key") == b"of the second"
    assert first[0].store.get("key") == b"of the first"


def test_the_greeting_of_a_dead_process_is_not_mistaken_for_a_living_one(server: Any) -> None:
    server.set("hello/1", "somebody who has died")
    with pytest.raises(TrainingError, match=r"Rank 0 has waited in vain for rank 1 to start"):
        join(server, 0, 2, timeout=0.5)
    assert len(attempt(server, 2)) == 2


def test_who_is_missing_is_said(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lavislite"), pytest.raises(TrainingError):
        join(server, 0, 4, warn=0.1, timeout=0.5)
    assert caplog.messages == ["Rank 0 waits for ranks 1-3 to start."]
    with pytest.raises(TrainingError, match="Rank 2 has waited in vain for rank 0 to start"):
        join(server, 2, 4, timeout=0.3)


def test_without_a_launcher_nobody_waits(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    found = {"RANK": "1", "WORLD_SIZE": "2", **where}
    with pytest.raises(TrainingError, match="The launcher of rank 1 has gone"):
        meet(found, 60, 600, orphaned=lambda: True)
    nobody = {**found, "MASTER_PORT": "1"}
    monkeypatch.setattr("lavislite.common.rendezvous._LAUNCHER", 0.2)
    monkeypatch.setattr("lavislite.common.rendezvous._CONNECT", 0.3)
    with pytest.raises(TrainingError, match="waited in vain for the launcher or rank 0 at 127"):
        meet(nobody, 60, 600)
