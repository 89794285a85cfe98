"""The command line: quick help, short errors, exit codes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lavislite.cli import main

ROOT = Path(__file__).parents[1]
TOY = str(Path(__file__).with_name("toy_parts.py"))

PROJECT = f"""
user_dir: {TOY}
model: {{arch: toy}}
datasets:
  toy_data: {{size: 32}}
run:
  task: toy_task
  batch_size_train: 8
  num_workers: 0
  valid_splits: [val]
  tensorboard: false
  report: false
  device: cpu
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(PROJECT)
    return path


def test_train_then_evaluate(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg-path", str(project)]) == 0
    run = Path("output/toy/latest")
    assert (run / "config.yaml").exists()
    assert main(["evaluate", "--cfg-path", str(project), "--checkpoint", str(run)]) == 0
    assert main(["evaluate", "--checkpoint", str(run / "checkpoints/last")]) == 0  # its own config
    assert len([entry for entry in Path("output/toy").iterdir() if not entry.is_symlink()]) == 3


def test_a_resumed_run_belongs_to_its_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr("lavislite.playground.keep_result", lambda _, name, __: kept.append(name))
    main(["train", "--cfg-path", str(project), "--options", "run.max_steps=2"])
    run = Path("output/toy/latest").resolve()
    more = ["--options", f"run.resume={run}", "run.max_steps=3"]
    main(["train", "--cfg-path", str(run / "config.yaml"), *more])
    assert kept == ["toy", "toy"]


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_lavis_scripts_and_flags(project: Path) -> None:
    path = str(project)
    done = call("train.py", "--cfg-path", path, "--options", "run.seed=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "trainable" in done.stderr + done.stdout
    assert not Path("output").exists()
    wrong = call("evaluate.py", "--cfg-path", path, "--options", "rum.seed=3")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1] == (
        "error: --options: unknown section 'rum'. Did you mean 'run'? "
        "Known: model, datasets, run, base, user_dir"
    )
    assert "Traceback" not in wrong.stderr


def test_a_full_disk_is_one_sentence(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "log.jsonl")

    monkeypatch.setattr("lavislite.runners.log.RunLog.write", full)
    assert main(["train", "--cfg-path", str(project)]) == 2
    assert "error: Cannot write (log.jsonl): No space left on device" in capsys.readouterr().err


def test_user_dir_flag(project: Path) -> None:
    project.write_text(PROJECT.replace(f"user_dir: {TOY}", ""))
    assert main(["validate", "--cfg-path", str(project), "--user-dir", TOY]) == 0


def test_validate_reads_the_data_and_builds_no_model(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lavislite.build.build_model", None)
    assert main(["validate", "--cfg-path", str(project)]) == 0
    assert "datasets.toy_data: val: 32 samples" in capsys.readouterr().out
    arguments = ["validate", "--cfg-path", str(project), "--options", "run.valid_splits=[va]"]
    assert main(arguments) == 2
    assert "Did you mean 'val'" in capsys.readouterr().err
    arguments = ["validate", "--cfg-path", str(project), "--options", "run.batch_size_train=1000"]
    assert main(arguments) == 2
    assert "Lower run.batch_size_train" in capsys.readouterr().err


def test_listings_take_wildcards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "blip2*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["blip2", "coco,", "playground,", "pretrain,", "pretrain_vitL"]
    assert main(["datasets", "*retrieval"]) == 0
    assert "coco_retrieval" in capsys.readouterr().out
    assert main(["models", "blop2"]) == 2
    assert "Did you mean 'blip2'" in capsys.readouterr().err


def test_a_missing_file_offers_the_nearest(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--cfg-path", "to.yaml"]) == 2
    assert "Did you mean 'toy.yaml'" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "--cfg-path" in capsys.readouterr().err
    assert main(["evaluate", "--cfg-path", "toy.yaml", "--checkpoint", "toy.yml"]) == 2
    assert "Did you mean 'toy.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["datasets"], ["train", "--help"]])
def test_help_and_listings_are_instant(arguments: list[str]) -> None:
    code = (
        "import sys; from lavislite.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'timm'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_stopping_saves_and_says_how_to_go_on(project: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(project)]
    long = ["--options", "run.max_steps=10000000", "run.log_freq=1"]
    process = subprocess.Popen([*command, *long], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 143
    assert "run.resume=" in rest
    assert "Traceback" not in rest


def test_with_several_processes_one_speaks(project: Path) -> None:
    project.write_text(PROJECT.replace("valid_splits: [val]", "valid_splits: [vall]"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), "--cfg-path", str(project)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert done.stderr.count("Did you mean 'val'") == 1
