"""A whole run, in files and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runner_parts import Data, Model, Task, make_runner

from lavislite.common.errors import ConfigError, DataError, TrainingError


def log(run_dir: Path, event: str) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    runner = make_runner(
        tmp_path, model=Model(dropout=0), valid_splits=["val"], test_splits=["test"], max_epoch=6
    )
    metrics = runner.train()
    assert set(metrics) == {"toy/val/loss", "toy/test/loss"}
    train = log(tmp_path, "train")
    assert [row["step"] for row in train] == list(range(1, 37))
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    keys = {"epoch", "lr", "loss", "loss_part", "grad_norm", "samples_per_second", "data_wait"}
    assert keys | {"memory_gb", "seconds"} <= set(train[0])
    assert train[5]["epoch"] == 1.0
    assert len(log(tmp_path, "eval")) == 7
    assert "torch" in log(tmp_path, "start")[0]["versions"]
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == metrics
    assert (tmp_path / "results/toy_val_step6.jsonl").is_file()
    assert (tmp_path / "config.yaml").read_text() == "run: {}\n"


def test_the_log_counts_broken_records_where_there_are_any(tmp_path: Path) -> None:
    make_runner(tmp_path / "bad", train=Data(24, bad=(3, 9)), max_epoch=1).train()
    assert log(tmp_path / "bad", "train")[-1]["bad_records"] == 2
    make_runner(tmp_path / "good", max_epoch=1).train()
    assert "bad_records" not in log(tmp_path / "good", "train")[-1]


def test_left_over_micro_batches_make_a_last_step_of_their_own(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, accum_grad_iters=4, max_epoch=2)
    runner.train()
    assert runner.state.step == 4  # 6 batches: 4 and 2, twice


def test_the_best_checkpoint_is_tested_for_any_split_name_and_negative_scores(
    tmp_path: Path,
) -> None:
    datasets = {"toy": {"minival": Data(8, split="minival"), "test": Data(8, split="test")}}
    task = Task(scores=[-5.0, -1.0, -3.0, 77.0])
    runner = make_runner(
        tmp_path, task=task, evaluated=datasets, max_epoch=3, keep_last=1,
        valid_splits=["minival"], test_splits=["test"],
    )  # fmt: skip
    metrics = runner.train()
    assert (runner.state.best_step, runner.state.best_score) == (12, -1.0)
    assert metrics["toy/minival/accuracy"] == -1.0
    assert metrics["toy/test/accuracy"] == 77.0
    best = tmp_path / "checkpoints/checkpoint_best"
    assert best.resolve().name == "step_12"
    assert (tmp_path / "checkpoints/last").resolve().name == "step_18"
    assert sorted(p.name for p in best.parent.glob("step_*")) == ["step_12", "step_18"]
    from lavislite.common.tensors import load_tensors

    saved = load_tensors(best / "model.safetensors")
    assert torch.equal(saved["head.weight"], runner.model.head.weight)
    assert (tmp_path / "results/toy_test_step12.jsonl").is_file()


def test_evaluation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    every_step = {"valid_splits": ["val"], "eval_every_steps": 1, "eval_at_start": True}
    make_runner(tmp_path / "often", **every_step).train()
    make_runner(tmp_path / "never").train()
    losses = [[r["loss"] for r in log(tmp_path / name, "train")] for name in ("often", "never")]
    assert losses[0] == losses[1]


def test_a_misspelt_monitor_stops_before_training(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, valid_splits=["val"], monitor="los")
    with pytest.raises(ConfigError, match=r"'los'.*Did you mean 'loss'"):
        runner.train()
    assert log(tmp_path, "train") == []


def test_evaluate_needs_no_training_data_and_writes_no_checkpoint(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, test_splits=["test"])
    runner.data = None
    metrics = runner.evaluate()
    assert set(metrics) == {"toy/test/loss"}
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(TrainingError, match="without training data"):
        runner.train()


def test_evaluate_scores_the_checkpoint_named_by_resume(tmp_path: Path) -> None:
    trained = make_runner(tmp_path / "a", test_splits=["test"]).train()
    fresh = make_runner(tmp_path / "b", test_splits=["test"], resume=str(tmp_path / "a"))
    assert fresh.evaluate()["toy/test/loss"] == trained["toy/test/loss"]


def test_dry_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "run", valid_splits=["val"])
    found = runner.dry_run()
    assert found["parameters"]["head"] == [27, 0]
    assert found["parameters"]["tower"] == [0, 40]
    assert found["train"]["loss"] > 0
    assert found["metrics"].keys() == {"toy/val/loss"}
    assert found["peak_memory_gb"]["host"] > 0
    assert not (tmp_path / "run").exists()


def test_a_dataset_smaller_than_a_batch_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one batch of 4.*toy has 3.*batch_size_train"):
        make_runner(tmp_path, train=Data(3))


def test_frozen_parts_stay_in_eval_mode_while_training(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, valid_splits=["val"], max_epoch=1)
    runner.train()
    assert runner.model.training
    assert not runner.model.tower.training
