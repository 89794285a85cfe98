"""What counts as the second Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from lavislite.common import distributed
from lavislite.runners import interrupt


@pytest.fixture
def several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)


@pytest.mark.usefixtures("several_processes")
def test_a_launcher_may_pass_on_the_ctrl_c_that_everyone_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with interrupt.stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    monkeypatch.undo()
    assert stop.exchange().signum == signal.SIGINT


@pytest.mark.usefixtures("several_processes")
def test_a_later_ctrl_c_aborts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_ECHO_SECONDS", -1.0)
    with interrupt.stop_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
