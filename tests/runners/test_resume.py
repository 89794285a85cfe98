"""Stop anywhere, go on, and end with the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_parts import Model, Task, make_runner

from lavislite.common.errors import CheckpointError, UserError
from lavislite.runners.checkpoint import find_checkpoint, run_dir_of


def weights(run_dir: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    from lavislite.common.tensors import load_tensors

    return dict(load_tensors(run_dir / "checkpoints" / checkpoint / "model.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_three_steps_and_three_more_are_six(tmp_path: Path, workers: int) -> None:
    # 6 steps of 2 micro-batches in 2 epochs, so that the stop is in mid-epoch; dropout and noise.
    options: dict[str, Any] = {
        "accum_grad_iters": 2,
        "save_every_steps": 2,
        "valid_splits": ["val"],
    }
    make_runner(tmp_path / "whole", **options).train()
    resumed = make_runner(
        tmp_path / "resumed",
        resume=str(tmp_path / "whole/checkpoints/step_2"),
        num_workers=workers,
        **options,
    )
    resumed.train()
    assert resumed.state.step == 6
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    trainers = [
        torch.load(tmp_path / run / "checkpoints/last/trainer.pt", weights_only=True)
        for run in ("whole", "resumed")
    ]
    assert torch.equal(trainers[0]["rng"][0]["torch"], trainers[1]["rng"][0]["torch"])
    assert trainers[0]["state"] == trainers[1]["state"]


class Pressing(Task):
    """A task during whose steps somebody sends signals to this process."""

    def __init__(self, *signals: int) -> None:
        super().__init__()
        self.signals = signals
        self.seen = 0

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.seen += 1
        if self.seen == 3:
            for signum in self.signals:
                os.kill(os.getpid(), signum)
        return super().train_step(model, samples)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, signum: int, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signum)
    make_runner(tmp_path / "whole", save_freq=0).train()
    with pytest.raises(SystemExit) as stopped:
        make_runner(tmp_path / "run", task=Pressing(signum), save_freq=0).train()
    assert stopped.value.code == code
    assert signal.getsignal(signum) is before
    saved = tmp_path / "run/checkpoints/step_3"
    assert f"python train.py --cfg-path {tmp_path}/run/config.yaml" in caplog.text
    assert f"--options run.resume={saved}" in caplog.text
    make_runner(tmp_path / "run", resume="auto", save_freq=0).train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    steps = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps if r["event"] == "train"] == list(range(1, 13))


def test_a_second_ctrl_c_aborts_at_once(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, task=Pressing(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert runner.state.step == 2


def test_the_best_score_survives_and_the_best_checkpoint_comes_along(tmp_path: Path) -> None:
    first = Task(scores=[0.9, 0.1, 0.5])
    options = {"valid_splits": ["val"], "save_freq": 1}
    make_runner(tmp_path / "a", task=first, **options, test_splits=["test"]).train()
    later = Task(scores=[0.2, 0.8, 0.4])
    runner = make_runner(
        tmp_path / "b", task=later, max_epoch=4, resume=str(tmp_path / "a"), **options
    )
    metrics = runner.train()
    assert (runner.state.best_score, runner.state.best_step) == (0.9, 6)
    assert metrics["toy/val/accuracy"] == 0.9
    assert same(weights(tmp_path / "b", "checkpoint_best"), weights(tmp_path / "a", "step_6"))


def test_resuming_a_finished_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = make_runner(tmp_path, valid_splits=["val"]).train()
    again = make_runner(tmp_path, valid_splits=["val"], resume="auto").train()
    assert "is finished: 12 of 12 steps are done" in caplog.text
    assert again == first


def test_auto_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, resume="auto")
    runner.train()
    assert runner.state.step == 12


def test_another_backbone_is_refused_with_both_names(tmp_path: Path) -> None:
    make_runner(tmp_path).train()
    other = make_runner(tmp_path, model=Model(backbone="tower@2"), resume="auto")
    with pytest.raises(CheckpointError, match=r"'tower@1'.*'tower@2'"):
        other.train()


def test_missing_and_unknown_weights_are_refused(tmp_path: Path) -> None:
    make_runner(tmp_path).train()
    model = Model()
    model.extra = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"lacks 'extra\.weight'"):
        make_runner(tmp_path, model=model, resume="auto").train()


def test_a_damaged_checkpoint_names_its_folder(tmp_path: Path) -> None:
    make_runner(tmp_path).train()
    (tmp_path / "checkpoints/step_12/trainer.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"step_12 cannot be read"):
        make_runner(tmp_path, resume="auto").train()


def test_a_changed_configuration_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_runner(tmp_path, config_yaml="run:\n  init_lr: 0.1\n  resume: null\n").train()
    now = "run:\n  init_lr: 0.2\n  resume: auto\n"
    make_runner(tmp_path, config_yaml=now, resume="auto").train()
    assert "+  init_lr: 0.2" in caplog.text
    assert "+  resume" not in caplog.text


def test_where_resume_points(tmp_path: Path) -> None:
    make_runner(tmp_path / "out/a").train()
    last = (tmp_path / "out/a/checkpoints/step_12").resolve()
    assert find_checkpoint(str(tmp_path / "out/a"), tmp_path / "new") == last
    assert find_checkpoint(str(last), tmp_path / "new") == last
    assert run_dir_of("auto", tmp_path / "out") == tmp_path / "out/a"
    assert run_dir_of(str(last), tmp_path) == (tmp_path / "out/a").resolve()
    assert run_dir_of("auto", tmp_path / "nothing") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(str(tmp_path / "out"), tmp_path)
    with pytest.raises(UserError, match=r"No checkpoint .*out/b"):
        find_checkpoint(str(tmp_path / "out/b"), tmp_path)


def test_going_back_further_forgets_what_the_abandoned_steps_found(tmp_path: Path) -> None:
    options: dict[str, Any] = {"valid_splits": ["val"], "save_every_steps": 3}
    make_runner(tmp_path, task=Task(scores=[0.1, 0.9]), **options).train()
    assert (tmp_path / "checkpoints/checkpoint_best").resolve().name == "step_12"
    start = str(tmp_path / "checkpoints/step_3")
    runner = make_runner(tmp_path, task=Task(scores=[0.2, 0.1]), resume=start, **options)
    assert runner.train()["toy/val/accuracy"] == 0.2
    assert (tmp_path / "checkpoints/checkpoint_best").resolve().name == "step_6"
