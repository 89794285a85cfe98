"""Every test runs offline, on one thread, with a cache of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell's background job starts with Ctrl-C ignored; the tests of stopping send it themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def _trained_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.playground_parts import run_stages

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVISLITE_CACHE", str(folder / "cache"))
        run_stages(folder / "output")
    return folder / "cache"


@pytest.fixture
def trained_playground(_trained_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine where stage 1 and stage 2 of the playground have run."""
    monkeypatch.setenv("LAVISLITE_CACHE", str(_trained_cache))
    return _trained_cache
