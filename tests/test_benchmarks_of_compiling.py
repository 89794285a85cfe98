"""The benchmarks of compiled and of 8-bit parts run, on sizes so small that they mean nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavislite.runners import compile as compiling

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script sees its neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced, and not made into machine code."""
    import torch._dynamo as dynamo

    dynamo.reset()
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    names = ("recompile_limit", "accumulated_recompile_limit", "optimize_ddp")
    with dynamo.config.patch({name: getattr(dynamo.config, name) for name in names}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_traced")
def test_compile(tmp_path: Path) -> None:
    compile_ = importlib.import_module("compile")
    out = tmp_path / "compile.json"
    arguments = ["--quick", "--threads", "1", "--rounds", "1", "--json", str(out)]
    assert compile_.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["compiled_again_in_30_random_batches"] == 0
    assert found["pieces_of_code"] > 0
    assert found["greatest_difference_of_losses"] < 1e-3


@pytest.mark.parametrize("stage", ["1", "2"])
def test_gpu_on_a_cpu(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = importlib.import_module("gpu")
    tiny = ["--stage", stage, "--tiny", "--device", "cpu", "--batch-size", "2", "--steps", "1"]
    out = tmp_path / "gpu.json"
    assert gpu.main([*tiny, "--cases", "plain", "cached", "--json", str(out)]) == 0
    cases = json.loads(out.read_text())["cases"]
    assert cases["plain"]["loss"] > 0
    assert cases["cached"]["images_per_second"] > 0
    assert "| plain |" in capsys.readouterr().out


def test_the_search_for_the_largest_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "fits", lambda _model, size, *_: size <= 43)
    monkeypatch.setattr(gpu, "build", lambda *_: None)
    out = tmp_path / "largest.json"
    assert gpu.main(["--largest", "80", "--device", "cpu", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["largest batch"] == 40


@pytest.mark.slow
def test_low_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    low_precision = importlib.import_module("low_precision")
    out = tmp_path / "low.json"
    assert low_precision.main(["--quick", "--threads", "1", "--json", str(out)]) == 0
    [rows] = json.loads(out.read_text())["outputs"].values()  # no playground in an empty cache
    assert rows["fp32"]["relative_rms"] == 0
    assert 0 < rows["int8"]["relative_rms"] < 0.05
    assert "fp8 needs a GPU" in capsys.readouterr().err or "fp8 + bf16" in rows
