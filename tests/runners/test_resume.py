"""Stop anywhere, go on, and end with the same bits."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_job import log
from runner_parts import Model, Task, make_runner

from lavislite.common.errors import CheckpointError, UserError
from lavislite.runners.find import find_checkpoint, run_dir_of


def weights(run_dir: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    from lavislite.common.tensors import load_tensors

    return dict(load_tensors(run_dir / "checkpoints" / checkpoint / "model.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_of(run_dir: Path) -> list[int]:
    return [row["step"] for row in log(run_dir) if row["event"] == "train"]


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
    assert steps_of(tmp_path / "run") == list(range(1, 13))


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
    options: dict[str, Any] = {"valid_splits": ["val"], "test_splits": ["test"]}
    first = make_runner(tmp_path, **options).train()
    rows = log(tmp_path)
    again = make_runner(tmp_path, resume="auto", **options).train()
    assert log(tmp_path) == rows  # its end is not told twice
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


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "cut": ("trainer.pt", half, r"trainer\.pt has \d+ bytes, \d+ were written"),
    "bit": ("model.safetensors", another_bit, r"model\.safetensors has changed .*SHA-256"),
    "lost": ("config.yaml", Path.unlink, r"config\.yaml is missing"),
    "meta": ("meta.json", half, r"meta\.json cannot be read"),
    "no meta": ("meta.json", Path.unlink, r"meta\.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_runner(tmp_path, save_every_steps=4).train()
    before = {name: tensor.clone() for name, tensor in weights(tmp_path).items()}
    name, spoil, what = DAMAGES[damage]
    spoil(tmp_path / "checkpoints/step_12" / name)
    runner = make_runner(tmp_path, save_every_steps=4, resume="auto")
    runner.train()
    assert re.search(rf"step_12 is damaged: {what}.* Continuing from .*step_8\.", caplog.text)
    assert same(weights(tmp_path), before)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_that_was_named_names_the_whole_ones(
    tmp_path: Path, damage: str
) -> None:
    make_runner(tmp_path, save_every_steps=4).train()
    name, spoil, what = DAMAGES[damage]
    named = tmp_path / "checkpoints/step_8"
    spoil(named / name)
    with pytest.raises(CheckpointError, match=rf"step_8 cannot be read: {what}.*step_12, .*step_4"):
        make_runner(tmp_path, resume=str(named)).train()


def test_without_a_whole_checkpoint_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    make_runner(tmp_path).train()
    for number in (6, 12):
        half(tmp_path / f"checkpoints/step_{number}/trainer.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole.*step_12.*step_6"):
        make_runner(tmp_path, resume="auto").train()


def test_evaluation_refuses_weights_that_are_cut_short(tmp_path: Path) -> None:
    make_runner(tmp_path / "a", test_splits=["test"]).train()
    half(tmp_path / "a/checkpoints/step_12/model.safetensors")
    with pytest.raises(CheckpointError, match=r"step_12 cannot be read: model\.safetensors has"):
        make_runner(tmp_path / "b", test_splits=["test"], resume=str(tmp_path / "a")).evaluate()


def test_a_lost_best_checkpoint_is_noticed_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"valid_splits": ["val"]}
    make_runner(tmp_path, task=Task(scores=[0.9, 0.1]), **options).train()
    (tmp_path / "checkpoints/step_6/model.safetensors").unlink()
    task = Task(scores=[0.5])
    runner = make_runner(tmp_path, task=task, resume="auto", max_epoch=3, **options)
    assert runner.train()["toy/val/accuracy"] == 0.5
    assert "step_6, is lost (model.safetensors is missing)" in caplog.text


def test_checkpoints_of_the_first_format_resume(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "data/format1/step_6"
    options: dict[str, Any] = {"valid_splits": ["val"], "save_every_steps": 3}
    make_runner(tmp_path / "whole", **options).train()
    shutil.copytree(old, tmp_path / "run/checkpoints/step_6")
    runner = make_runner(tmp_path / "run", resume="auto", **options)
    runner.train()
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.allclose(weights(tmp_path / "run")[name], weight, atol=1e-6)
    assert steps_of(tmp_path / "run") == [7, 8, 9, 10, 11, 12]


def test_running_means_and_the_end_of_the_log_come_back(tmp_path: Path) -> None:
    # Rows every 4 steps, saved in between; and the last run had reached its end.
    options: dict[str, Any] = {"log_freq": 4, "save_every_steps": 2, "test_splits": ["test"]}
    make_runner(tmp_path / "whole", **options).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "run")  # links become folders
    start = str(tmp_path / "run/checkpoints/step_6")
    make_runner(tmp_path / "run", resume=start, **options).train()
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert [row["event"] for row in log(tmp_path / "run")] == ["train"] * 3 + ["eval", "end"]


def test_going_back_is_final_even_before_anything_is_saved(tmp_path: Path) -> None:
    make_runner(tmp_path, save_every_steps=4).train()
    step_4 = str(tmp_path / "checkpoints/step_4")
    task = Pressing(signal.SIGINT, signal.SIGINT)
    stopped = make_runner(tmp_path, task=task, resume=step_4, save_freq=0)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert find_checkpoint("auto", tmp_path) == Path(step_4).resolve()
    assert (tmp_path / "checkpoints/last").resolve().name == "step_4"


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
