"""Without a network the hub's client fails at once, and its cache still answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from lavislite.common import hub


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A hub at a port of this machine where nobody listens."""
    from huggingface_hub import constants

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        port = taken.getsockname()[1]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(hub, "_seen", [])
        yield port


def test_a_hub_out_of_reach_is_given_up_at_once(closed_port: int) -> None:
    from huggingface_hub import hf_hub_download

    trouble = hub.hub_trouble()
    assert trouble is not None
    assert trouble.startswith("no connection to 127.0.0.1")
    assert hub.hub_trouble() == trouble  # not the variable that we have set ourselves
    began = time.monotonic()
    with pytest.raises(OSError, match="cannot find the requested files"):
        hf_hub_download("some/model", "config.json")
    assert time.monotonic() - began < 1


def test_a_hub_that_answers_is_used(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub.hub_trouble() is None
    assert not constants.HF_HUB_OFFLINE


def test_the_users_own_wish_to_stay_offline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_seen", [])
    assert hub.hub_trouble() == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("proxies", "gate"),
    [
        ({}, ("huggingface.co", 443)),
        ({"https": "http://gate.example:3128"}, ("gate.example", 3128)),
        ({"https": "gate.example:3128"}, ("gate.example", 3128)),
    ],
)
def test_a_proxy_is_asked_instead(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], gate: tuple[str, int]
) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(hub, "proxy_bypass", lambda _: False)
    assert hub._gate("https://huggingface.co") == gate
