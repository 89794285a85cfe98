"""Bad numbers and spikes in a whole run: its log, its end, and its continuation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_parts import Data, Model, make_runner
from torch import Tensor

from lavislite.common.errors import TrainingError
from lavislite.runners.runner import Runner


class Plain(Model):
    """Without the squashing in between, large inputs have large gradients."""

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        y = self.head(self.tower(samples["image"]))
        return {"loss": torch.nn.functional.cross_entropy(y, samples["label"])}


def run(folder: Path, *, spoilt: int = -1, large: int = -1, **options: Any) -> Runner:
    """A run of 48 steps on 24 records, some of which may hold NaN or large numbers."""
    data = Data(24)
    if spoilt >= 0:
        data.x[spoilt] = float("nan")
    if large >= 0:
        data.x[large] *= 1e4
        data.y[large] = (data.y[large] + 1) % 3
    options = {"init_lr": 1e-3, "max_epoch": 8, "log_freq": 5} | options
    return make_runner(folder, model=Plain(), train=data, **options)


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def test_steps_left_out_are_counted_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, spoilt=5, skip_nonfinite=8).train()
    train, skips = rows(tmp_path, "train"), rows(tmp_path, "skip")
    assert train[-1]["skipped"] == len(skips) == 8  # once in each epoch
    assert all("toy#5" in row["records"] and len(row["records"]) == 4 for row in skips)
    assert [row["step"] // 6 for row in skips] == sorted(row["step"] // 6 for row in skips)
    assert sum("is left out" in record.message for record in caplog.records) == 8
    assert all(row["loss"] > 0 for row in train)


def test_one_step_too_many_ends_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"2 such steps.*toy#5.*skip_nonfinite"):
        run(tmp_path, spoilt=5, skip_nonfinite=2, save_every_steps=1).train()
    last = (tmp_path / "checkpoints/last").resolve().name
    with pytest.raises(TrainingError, match=f"at step {int(last.split('_')[1]) + 1} "):
        run(tmp_path, spoilt=5, skip_nonfinite=2, resume="auto").train()


def test_a_spike_names_its_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, large=7, grad_spike=4, init_lr=0.0).train()  # one batch of six is large
    spikes = rows(tmp_path, "spike")
    assert spikes
    assert all("toy#7" in row["records"] for row in spikes)
    assert all(row["grad_norm"] > 4 * row["usual_grad_norm"] for row in spikes)
    assert "gradient norm" in caplog.text


def test_the_log_tells_the_arithmetic(tmp_path: Path) -> None:
    run(tmp_path, max_epoch=1, log_freq=2).train()
    assert all(row["tflops"] > 0 for row in rows(tmp_path, "train"))
    assert all("mfu" not in row for row in rows(tmp_path, "train"))


def test_a_resumed_run_tells_each_event_once(tmp_path: Path) -> None:
    options = {"spoilt": 5, "skip_nonfinite": 8, "grad_spike": 1.3, "save_every_steps": 7}
    run(tmp_path, **options).train()

    def told() -> list[dict[str, Any]]:
        found = [row for kind in ("train", "skip", "spike") for row in rows(tmp_path, kind)]
        rates = ("seconds", "samples_per_second", "data_wait", "memory_gb", "tflops")
        return [{k: v for k, v in row.items() if k not in rates} for row in found]

    undisturbed = told()
    assert {row["event"] for row in undisturbed} == {"train", "skip", "spike"}
    run(tmp_path, resume=str(tmp_path / "checkpoints/step_28"), **options).train()
    assert told() == undisturbed
