"""From a configuration to a runner: mistakes are found early, runs do not meet."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite import build
from lavislite.common.config import Config, resolve
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.run_dir import create_run_dir

ROOT = Path(__file__).parents[1]
TOY = str(Path(__file__).with_name("toy_parts.py"))


def make(tmp_path: Path, run: dict[str, Any] | None = None, **data: Any) -> Config:
    return resolve(
        {
            "user_dir": TOY,
            "model": {"arch": "toy"},
            "datasets": {"toy_data": data},
            "run": {
                "task": "toy_task",
                "batch_size_train": 8,
                "batch_size_eval": 8,
                "num_workers": 0,
                "init_lr": 0.01,
                "valid_splits": ["val"],
                "output_dir": str(tmp_path / "out"),
                "report": False,
                "tensorboard": False,
                "device": "cpu",
                **(run or {}),
            },
        },
        origin="test",
    )


def test_a_run_trains_and_leaves_a_configuration_that_runs(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    runner = build.build_runner(cfg, project="projects/toy.yaml")
    metrics = runner.train()
    assert metrics["toy_data/val/loss"] > 0
    assert runner.run_dir.parent == tmp_path / "out/toy"
    assert (runner.run_dir.parent / "latest").resolve() == runner.run_dir
    assert (runner.run_dir / "config.yaml").read_text() == cfg.to_yaml()


def test_a_project_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    folders = {
        build.build_runner(make(tmp_path), project=name).run_dir.parent.name
        for name in ("toy.small.yaml", "toy.large.yaml", "toy.large")  # the last: of a resumed run
    }
    assert folders == {"toy.small", "toy.large"}


def test_runs_started_together_get_folders_of_their_own(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_dir(cfg, "toy"), range(16)))
    assert len(set(folders)) == 16


def test_the_model_follows_from_the_seed(tmp_path: Path) -> None:
    first = build.build_model(make(tmp_path))
    torch.rand(7)
    again = build.build_model(make(tmp_path))
    other = build.build_model(make(tmp_path, {"seed": 1}))
    assert torch.equal(first.line[0].weight, again.line[0].weight)
    assert not torch.equal(first.line[0].weight, other.line[0].weight)


def test_the_models_text_preparer_works_where_batches_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = lambda batch: {**batch, "text_tokens": len(batch["x"])}  # noqa: E731
    monkeypatch.setattr("lavislite.models.base.BaseModel.text_preparer", lambda _: prepare)
    runner = build.build_runner(make(tmp_path))
    assert next(runner.data.batches(0, 1))["text_tokens"] == 8


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    runner = build.build_runner(make(tmp_path), dry_run=True)
    found = runner.dry_run()
    assert found["train"]["loss"] > 0
    assert not (tmp_path / "out").exists()
    runner.run_dir.rmdir()  # the command line does this; empty, or it fails


def test_evaluation_alone_builds_no_training_data(tmp_path: Path) -> None:
    data = build.build_data(make(tmp_path), train=False)
    assert [(d.name, d.split) for d in data] == [("toy_data", "val")]


def test_a_checkpoint_is_evaluated_with_its_weights(tmp_path: Path) -> None:
    runner = build.build_runner(make(tmp_path), project="toy.yaml")
    trained = runner.train()
    again = build.build_runner(
        make(tmp_path, {"seed": 5}), project="toy.yaml", train=False, checkpoint=runner.run_dir
    )
    assert again.run_dir != runner.run_dir
    assert again.evaluate() == pytest.approx(trained)


def test_resume_auto_goes_on_in_the_last_folder_of_the_project(tmp_path: Path) -> None:
    first = build.build_runner(make(tmp_path, {"max_steps": 2}), project="toy.yaml")
    first.train()
    longer = make(tmp_path, {"max_steps": 6, "resume": "auto"})
    assert build.build_runner(longer, project="other.yaml").run_dir.parent.name == "other"
    second = build.build_runner(longer, project="toy.yaml")
    assert second.run_dir == first.run_dir
    second.train()
    assert second.state.step == 6
    with pytest.raises(UserError, match=r"nowhere"):
        build.build_runner(make(tmp_path, {"resume": "nowhere"}))


# ---- mistakes, before anything expensive


def fails(cfg: Config, kind: type[Exception], match: str, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        build.build_runner(cfg, **options)
    assert not list(Path(cfg.run.output_dir).glob("*/*"))  # no folder of a run that never began


def test_splits_that_nobody_has(tmp_path: Path) -> None:
    cfg = make(tmp_path, {"valid_splits": ["vall"]})
    fails(cfg, ConfigError, r"run.valid_splits: no dataset has a split 'vall'. Did you mean 'val'")
    cfg = make(tmp_path, {"valid_splits": []})
    fails(cfg, ConfigError, r"Nothing to evaluate.*test, train, val", train=False)


def test_names_that_nobody_registered(tmp_path: Path) -> None:
    fails(make(tmp_path, {"lr_sched": "cosine"}), UserError, r"lr_sched: Unknown lr schedule")
    fails(make(tmp_path, {"runner": "runner_bas"}), UserError, r"Did you mean 'runner_base'")
    cfg = make(tmp_path)
    cfg.model.vision.name = "tinny"
    fails(cfg, UserError, r"Unknown vision backbone 'tinny'. Did you mean 'tiny'")


def test_precision_and_device(tmp_path: Path) -> None:
    fails(make(tmp_path, {"precision": "fp8"}), ConfigError, r"run.precision: 'fp8'")
    fails(make(tmp_path, {"device": "gpu"}), ConfigError, r"run.device: 'gpu'")


def test_images_that_do_not_fit_the_backbone(tmp_path: Path) -> None:
    cfg = make(tmp_path, vis_processor={"image_size": 16})
    fails(cfg, ConfigError, r"toy_data.vis_processor.*16 pixels, model.vision.image_size is 8")
    cfg = make(tmp_path, vis_processor={"mean": [0.0, 0.0, 0.0]})
    fails(cfg, ConfigError, r"mean \[0.0, 0.0, 0.0\].*'tiny' was trained with \[0.5, 0.5, 0.5\]")


def test_more_than_one_batch_needs_is_known_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_model", None)
    fails(make(tmp_path, {"batch_size_train": 1000}), UserError, r"Lower run.batch_size_train")


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size_train", 0), ("max_steps", 0), ("num_workers", -1), ("init_lr", -1.0)],
)
def test_numbers_that_cannot_be(tmp_path: Path, key: str, value: float) -> None:
    fails(make(tmp_path, {key: value}), ConfigError, rf"run.{key}: expected . or more, saw {value}")


def test_no_dataset(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    cfg.datasets = {}
    fails(cfg, ConfigError, r"datasets: is empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"Cannot write to .*run.output_dir="):
        build.build_runner(make(tmp_path))


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*run.output_dir="):
        build.build_runner(make(tmp_path))


def test_a_full_disk_is_noticed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            if len(content):  # an empty file still fits
                raise OSError(errno.ENOSPC, "No space left on device")
            return 0

    monkeypatch.setattr("lavislite.run_dir.tempfile.TemporaryFile", lambda **_: Full())
    fails(make(tmp_path), UserError, r"Cannot write to .*out: No space left")


def test_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    fails(make(tmp_path), UserError, "holds no weights", checkpoint=tmp_path / "config.yaml")


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(make(tmp_path, {"resume": str(tmp_path / "empty")}), CheckpointError, r"no checkpoint")


# ---- several processes

TWO = """
import sys
from pathlib import Path
from lavislite import build
from lavislite.common import distributed
from lavislite.common.config import load_config
distributed.init_distributed(1, "cpu")
cfg = load_config(sys.argv[1])
rank = distributed.rank()

def fail():
    raise build.UserError(f"rank {rank} could not")

try:
    build.on_each_machine(fail)
except build.UserError as error:
    Path(sys.argv[2], f"error{rank}").write_text(str(error))
runner = build.build_runner(cfg, project="toy.yaml")
Path(sys.argv[2], f"dir{rank}").write_text(str(runner.run_dir))
distributed.shutdown()
"""


def test_two_processes_share_folder_preparation_and_errors(tmp_path: Path) -> None:
    cfg = make(tmp_path, prepared=str(tmp_path / "prepared"))
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(tmp_path / "toy.yaml"), str(tmp_path)],
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dir0").read_text() == (tmp_path / "dir1").read_text()
    assert (tmp_path / "prepared").read_text().count("prepared") == 1
    assert (tmp_path / "error1").read_text() == (tmp_path / "error0").read_text()
