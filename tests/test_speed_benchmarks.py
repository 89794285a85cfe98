"""The benchmarks of speed run, on sizes so small that their figures mean nothing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.reference import reference_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script sees its neighbours, and without a change to the memory of this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("side_by_side"), "keep_memory", lambda: None)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, _importable: None) -> None:
    import stage2_step

    for name, value in {"VOCABULARY": 200, "LAYERS": 1, "OPT_LAYERS": 1}.items():
        monkeypatch.setattr(stage2_step, name, value)


def run(module: Any, file: Path, *arguments: str) -> dict[str, Any]:
    assert module.main([*arguments, "--threads", "1", "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.usefixtures("_small")
def test_stage2_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import stage2_step

    found = run(stage2_step, tmp_path / "f.json", "--steps", "1", "--batch-size", "2")
    gflop = found["gflop"]
    assert gflop["cached"] < gflop["ours"] < gflop["original"]
    for part in (found, found["memory_kept"]):
        assert set(part["seconds"]) == set(part["seconds_floor"]) == set(gflop)
        assert "ours than transformers" in part["times_faster"]
    assert "| original | " in capsys.readouterr().out


@pytest.mark.usefixtures("_small")
def test_evaluation_vqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluation_vqa

    monkeypatch.setattr(evaluation_vqa, "VOCABULARY", 200)
    arguments = ["--questions", "12", "--rounds", "1", "--batch-size", "4"]
    found = run(evaluation_vqa, tmp_path / "f.json", *arguments)
    passes = found["tower_passes_per_100"]
    assert passes["one by one"] == 100
    assert passes["shared"] < 45


def test_retrieval_rerank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peers.retrieval
    import retrieval_rerank

    def small(*_: Any, **__: Any) -> Any:
        return reference_model(max_txt_len=62)

    monkeypatch.setattr(retrieval_rerank, "TOKENS", 8)
    monkeypatch.setattr(peers.retrieval, "LENGTH", 62)  # the tiny vocabulary spells
    monkeypatch.setattr(retrieval_rerank, "build_model", small)
    arguments = ["--images", "3", "--k", "2", "--rounds", "1"]
    found = run(retrieval_rerank, tmp_path / "f.json", *arguments)
    assert found["counts"]["original"] == {"pairs": 3 * 2 + 15 * 2, "image_projections": 36}
    assert found["counts"]["ours"]["image_projections"] == 3
    assert 15 * 2 <= found["counts"]["ours"]["pairs"] <= 36
    assert found["largest_difference"] < 1e-4
    coco = found["coco"]
    assert coco["original"]["pairs"] == (5000 + 25_010) * 128
    assert coco["ours, at most"]["pflop"] < coco["original"]["pflop"] / 3


def test_ratios_are_taken_round_by_round() -> None:
    from side_by_side import in_turn, medians, ratio

    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turn(works, 2, warm_up=1)
    assert order == list("ababab")
    assert [len(values) for values in seconds.values()] == [2, 2]
    # The second round was disturbed as a whole.
    seconds = {"a": [2.0, 30.0, 2.0], "b": [1.0, 10.0, 1.0]}
    assert ratio(seconds, "a", "b") == 2.0
    assert medians(seconds) == {"a": 2.0, "b": 1.0}


def test_operations_count_forward_and_backward() -> None:
    from side_by_side import gflop

    weight = torch.randn(64, 64, requires_grad=True)
    forward = gflop(lambda: torch.ones(8, 64) @ weight)
    both = gflop(lambda: (torch.ones(8, 64) @ weight).sum().backward())
    assert both == 2 * forward == 2 * (2 * 8 * 64 * 64) / 1e9
