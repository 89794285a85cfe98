"""DDP and FSDP, on two processes and four, train as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
NOISE = 1e-5  # Adam scales a gradient that is nothing but rounding up to a full step


def launch(out: Path, processes: int, *kinds: str) -> list[dict[str, Any]]:
    """What each process found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(HERE / "strategies_job.py"), str(out), *kinds]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [torch.load(out / f"rank{r}.pt", weights_only=True) for r in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds, by kind of model."""
    import strategies_job

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = {kind: strategies_job.run(kind, folder) for kind in strategies_job.KINDS}
    half = strategies_job.run("opt", folder, precision="fp16")
    torch.set_num_threads(threads)
    return {**found, "opt fp16": half}


def assert_same_training(found: dict[str, Any], one: dict[str, Any], name: str) -> None:
    for ours, theirs in zip(found["losses"], one["losses"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), name
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name
    assert found["identity"] == one["identity"], name  # of the frozen parts, in a checkpoint
    assert found["weights"].keys() == one["weights"].keys()
    assert found["optimizer"].keys() == one["optimizer"].keys()
    for key, weight in one["weights"].items():
        if key not in one["optimizer"]:
            assert torch.equal(found["weights"][key], weight), (name, key)
            continue
        real = one["optimizer"][key]["exp_avg_sq"].sqrt() > NOISE
        difference = (found["weights"][key] - weight).abs()[real]
        assert difference.numel() == 0 or difference.max() < 2e-5, (name, key)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def launched(folder: Path) -> list[dict[str, Any]]:
    return launch(folder, 2)


@pytest.fixture(scope="module")
def two(launched: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: case for name, case in rank.items() if name != "relay"} for rank in launched]


def test_two_processes_train_as_one_with_every_strategy(
    two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for name, found in two[0].items():
        if not name.endswith("fp16"):
            assert_same_training(found, alone[name.split()[0]], name)
            assert not two[1][name]["weights"]  # the main process alone has them to write


def test_only_the_main_process_may_look_between_steps(
    two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for name, found in two[0].items():
        one = alone["opt fp16" if name.endswith("fp16") else name.split()[0]]
        tolerance = 1e-2 if name.endswith("fp16") else 1e-3
        for ours, theirs in zip(found["seen"], one["seen"], strict=True):
            assert torch.allclose(ours, theirs, atol=tolerance), name


def test_fp16_skips_the_same_steps_in_parts(
    two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    found, one = two[0]["opt fsdp fp16"], alone["opt fp16"]
    for ours, theirs in zip(found["losses"], one["losses"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    steps = {key: entries["step"] for key, entries in one["optimizer"].items()}
    assert {key: e["step"] for key, e in found["optimizer"].items()} == steps


def test_fsdp_holds_a_part_of_the_layers_and_of_what_is_trained(
    two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for kind in ("stage1", "opt", "t5"):
        whole = alone[kind]["held"]
        assert two[0][f"{kind} ddp"]["held"] == whole
        assert max(rank[f"{kind} fsdp"]["held"] for rank in two) < 0.65 * whole


def test_activation_checkpointing_changes_nothing(tmp_path: Path, alone: dict[str, Any]) -> None:
    import strategies_job

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, mode in (("stage1", "recompute"), ("opt", "offload")):
        found = strategies_job.run(kind, tmp_path, activation_checkpointing=mode)
        for name, weight in alone[kind]["weights"].items():
            assert torch.equal(found["weights"][name], weight), (kind, mode, name)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path: Path, alone: dict[str, Any]) -> None:
    for name, found in launch(tmp_path, 4, "stage1", "opt")[0].items():
        if name != "relay" and not name.endswith("fp16"):
            assert_same_training(found, alone[name.split()[0]], name)


def test_any_strategy_continues_what_another_began(
    launched: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    import strategies_job

    ddp = launched[0]["relay"]["whole"]
    fsdp = launched[0]["relay"]["continued"]
    step_4 = str(folder / "fsdp/checkpoints/step_4")
    single = strategies_job.trained(tmp_path, resume=step_4)
    alone = strategies_job.trained(tmp_path / "alone")
    for name, weight in alone.items():
        for other in (ddp, fsdp, single):
            assert torch.allclose(other[name], weight, atol=1e-6), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["stage1", "opt", "t5"])
def test_fsdp_on_one_gpu_trains_as_without(tmp_path: Path, kind: str, precision: str) -> None:
    import strategies_job

    one, parts = (
        strategies_job.run(kind, tmp_path, precision, "cuda", strategy=strategy)
        for strategy in ("single", "fsdp")
    )
    for ours, theirs in zip(parts["losses"], one["losses"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert all(torch.isfinite(weight).all() for weight in parts["weights"].values())
