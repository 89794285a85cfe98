"""The benchmarks run, on sizes so small that their figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavislite import cli

FOLDER = Path(__file__).parents[1] / "benchmarks"
WORLD = {"num_train": 8, "num_val": 3, "num_test": 3, "num_nocaps": 3, "num_flickr30k": 2}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script sees its neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))


def test_backbone_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import backbone_grid

    table = tmp_path / "grid.md"
    pair = ["--vision", "timm ViT", "--language", "Llama", "T5 gated-gelu"]
    assert backbone_grid.main([*pair, "--threads", "1", "--out", str(table)]) == 0
    assert "2 of 2 pairs work" in table.read_text()
    assert "| Llama | " in capsys.readouterr().out


def test_a_bad_pair_fails_the_grid_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backbone_grid

    table, pair = tmp_path / "grid.md", ["--vision", "hf CLIP", "--language", "OPT"]
    monkeypatch.setattr(backbone_grid, "train", lambda *_: None)
    assert backbone_grid.main([*pair, "--threads", "1", "--out", str(table)]) == 1
    assert "hf CLIP x OPT: AssertionError: the loss goes from" in table.read_text()


def test_peak_memory(tmp_path: Path) -> None:
    import peak_memory

    figures = tmp_path / "memory.json"
    arguments = ["--params", "3e6", "--limit", "1000", "--only", "language-file"]
    arguments += ["--folder", str(tmp_path), "--json", str(figures)]
    assert peak_memory.main(arguments) == 0
    found = json.loads(figures.read_text())["cases"]["language-file"]
    assert 2e6 < found["parameters"] < 4e6
    assert found["peak_gib"] >= found["before_gib"] > 0
    assert list(tmp_path.iterdir()) == [figures]


def test_weights_written_for_the_memory_benchmark_are_whole(tmp_path: Path) -> None:
    import peak_memory
    import torch

    from lavislite.models.language.base import LanguageConfig, build_language
    from lavislite.models.vision.base import VisionConfig, build_vision

    size, dtype = 3e6, torch.bfloat16
    shards: dict[str, Any] = peak_memory.write_language("language", size, dtype, tmp_path)
    file: dict[str, Any] = peak_memory.write_vision(size, dtype, tmp_path)
    parts = [
        build_language(LanguageConfig(**shards, precision="bf16")),
        build_vision(VisionConfig(**file, precision="bf16")),
    ]
    assert all(2e6 < sum(p.numel() for p in part.parameters()) < 4e6 for part in parts)


def test_stage1_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stage1_matters
    import tiny_parts

    languages = {"OPT": "OPT", "T5": "T5 gated-gelu"}
    folders = {n: tiny_parts.write_language(f, tmp_path / n).name for n, f in languages.items()}
    everywhere = ["run.num_workers=0", "run.warmup_steps=1", "run.batch_size_train=4"]
    small = [
        f"datasets.{dataset}.{key}={value}"
        for dataset in ("playground_caption", "playground_vqa")
        for key, value in WORLD.items()
    ]
    retrieval = [o.replace("playground_vqa", "playground_retrieval") for o in small]
    arguments = ["--vision", "random", "--steps", "1", "--every", "1", "--seeds", "1"]
    arguments += ["--questions", "2", "--pictures", "2", "--threads", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    arguments += ["--options", *everywhere, *small, "run.generation.max_new_tokens=8"]
    arguments += ["--stage1-options", *everywhere, *retrieval, "run.max_steps=1"]
    # Without training the playground's language models.
    real = stage1_matters.load_config

    def load(project: Path, options: list[str]) -> Any:
        name = {"pretrain_stage2": "OPT", "pretrain_stage2_t5": "T5"}.get(project.stem)
        own = [f"model.language.name={folders[name]}"] if name else []
        return real(project, [*options, *own])

    monkeypatch.setattr(stage1_matters, "load_config", load)
    assert stage1_matters.main(arguments) == 0
    name = "stage1_matters_random"
    runs = json.loads((tmp_path / "out" / f"{name}.json").read_text())["runs"]
    assert [(run["language"], run["start"]) for run in runs] == [
        (language, start) for language in languages for start in stage1_matters.STARTS
    ]
    for run in runs:
        assert all([s for s, _ in curve] == [0, 1] for curve in run["curves"].values())
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert "| OPT, with stage 1 | " in (tmp_path / "out" / f"{name}.md").read_text()
    monkeypatch.setattr(stage1_matters, "train", None)  # nothing is left to train
    assert stage1_matters.main(arguments) == 0


def test_data_memory(tmp_path: Path) -> None:
    import data_memory

    figures = tmp_path / "memory.json"
    arguments = ["--epochs", "2", "--workers", "1", "--batch", "4", "--pictures", "80"]
    arguments += ["--shards", "2", "--side", "32", "--repeat", "1", "--limit", "1000"]
    arguments += ["--folder", str(tmp_path), "--json", str(figures)]
    assert data_memory.main(arguments) == 0
    found = json.loads(figures.read_text())
    assert len(found["epochs"]) == 2
    assert all(epoch["rss"] >= epoch["pss"] > 0 for epoch in found["epochs"])
    assert 0 < found["throughput"]["ranges_to_local"] < 100
    assert list(tmp_path.iterdir()) == [figures]


@pytest.mark.slow
def test_fault_injection(tmp_path: Path) -> None:
    import fault_injection

    table = tmp_path / "faults.md"
    arguments = ["--kills", "2", "--steps", "80", "--seed", "4", "--out", str(table)]
    assert fault_injection.main([*arguments, "--keep", str(tmp_path / "runs")]) == 0
    assert "| final weights, byte by byte | equal |" in table.read_text()


def test_fault_injection_sees_a_difference_in_a_single_bit() -> None:
    import torch
    from fault_injection import differences, values

    one = {"state": {"a": torch.ones(2)}, "steps": [1, 2]}
    other = {"state": {"a": torch.tensor([1, 1.0000001])}, "steps": [1, 2, 3]}
    assert not list(differences(one, one))
    assert list(differences(one, other)) == ["/state/a", "/steps (2 and 3 entries)"]
    row = {"event": "train", "step": 1, "loss": 2.0}
    assert values([{**row, "seconds": 3.0}, {"event": "start", "step": 0}]) == [row]


def test_data_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import data_rate

    figures, small = tmp_path / "rate.json", data_rate.Kind("small", 40, 30, 16)
    monkeypatch.setattr(data_rate, "KINDS", (small,))
    monkeypatch.setattr(data_rate, "ROUNDS", (1, 1))
    assert data_rate.main(["--quick", "--rate", "123", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["small"]
    assert found["train"]["ratio"] > 0
    assert found["loader_cores_for_images_per_second"]["123.0"] > 0
    assert "small, RandAugment alone" in capsys.readouterr().out


def test_data_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import data_rate
    import data_wait

    def run(project: str | Path, *_: Any) -> dict[str, float]:
        if project != data_wait.PROJECT:  # the playground takes minutes to draw
            options = ["--options", *data_wait.TRAINING_ONLY]
            assert cli.main(["validate", "--cfg-path", str(project), *options]) == 0
        return {"pictures_per_second": 30.0, "data_wait": 0.0125}

    monkeypatch.setattr(data_wait, "run", run)
    monkeypatch.setattr(data_wait, "COCO", data_rate.Kind("small", 40, 30, 224))
    assert data_wait.main(["--quick", "--threads", "1"]) == 0
    assert "| COCO-sized JPEG, vit_tiny | 30 | 1.2% |" in capsys.readouterr().out


def test_startup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import startup

    monkeypatch.setattr(startup, "first_step_seconds", lambda *_: 7.125)
    monkeypatch.setattr(startup, "seconds_of", lambda _: 0.25)
    assert startup.main(["--quick"]) == 0
    shown = capsys.readouterr().out
    assert "first step of stage 1, cached       7.125    15.0  0.250 (import torch)" in shown
    assert "as shipped" not in shown


def test_feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import feature_cache

    monkeypatch.setattr(feature_cache, "keep_memory", lambda: None)
    figures = tmp_path / "features.json"
    small = ["--divide", "16", "--layers", "6", "--batch-size", "2", "--quick"]
    assert feature_cache.main([*small, "--threads", "1", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    work = found["gflop_per_picture"]
    assert found["gflop_ratio"] == pytest.approx(work["uncached"] / work["cached"], rel=0.05)
    assert found["gflop_ratio"] > 1.2
    errors = [found["stored"][dtype]["relative_error"] for dtype in ("fp32", "bf16", "int8")]
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[2] < 0.02
