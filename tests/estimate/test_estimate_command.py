"""``lavislite estimate`` as it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavislite.cli import main

ROOT = Path(__file__).parents[2]
STAGE1 = str(ROOT / "projects/blip2/pretrain_stage1.yaml")
LARGEST = str(ROOT / "projects/blip2/paper/pretrain_stage2_flant5xxl.yaml")


def test_it_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--options", "model.qformer.num_layers=2", "run.batch_size_train=3"]
    assert main(["estimate", STAGE1, "--gpus", "2", "--memory", "1.5", *small]) == 0
    assert "GiB per GPU, of 1.5" in capsys.readouterr().out
    assert main(["estimate", STAGE1, "--gpu", "h100", "--json", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["batch"], found["steps"]) == (1, 3, 400)
    assert found["gpu"]["tflops"] == 989
    assert {way["strategy"] for way in found["ways"]} == {"single"}
    assert all(way["memory_gib"]["total"] > 1 for way in found["ways"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--mfu", "30"], "--mfu"),
        (["--gpu", "a1000"], "Known: a100-40g"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", STAGE1, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_another_model_than_blip2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(ROOT / "projects/blip2/playground_vision.yaml")]) == 2
    assert "lavislite train --dry-run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_largest_recipe_takes_little_memory_and_no_network(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from lavislite.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "estimate", LARGEST, "--gpus", "16", "--json"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert int(done.stderr.split()[-1]) < 4000
    ways = {(w["strategy"], w["activation_checkpointing"]): w for w in found["ways"]}
    assert not ways["ddp", "none"]["fits"]
    assert ways["fsdp", "recompute"]["fits"]
    assert sum(p["all"] for p in found["parameters"].values()) == 12_229_541_760
    assert found["batch"] == 1520
    assert ways["ddp", "recompute"]["hours"] < 9 * 24
