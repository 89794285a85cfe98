"""The step without numbers computes and holds what the real one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from estimate_parts import QFORMER, real, recipe, simulator, stage2
from torch.utils.flop_counter import FlopCounterMode

from lavislite.common.config import Config
from lavislite.estimate.memory import memory
from lavislite.estimate.sizes import sizes_of
from lavislite.runners.blocks import checkpoint_activations

BATCH = 8
CASES = ("stage1", "trained tower", "opt", "t5")


def case(name: str, folder: Path) -> Config:
    if name == "stage1":
        return recipe()
    if name == "trained tower":
        return recipe({"vision": {"name": "tiny", "image_size": 32, "freeze": False}})
    return stage2(folder, name)


def measured_peak(model: Any, task: Any, samples: Any) -> int:
    """Most bytes that the CPU's allocator gave out in one step above those before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        task.train_step(model, samples)["loss"].backward()
    events = profile.profiler.kineto_results.events()
    live = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["none", "recompute"])
def test_operations_and_memory_are_those_of_the_real_step(
    name: str, mode: str, tmp_path: Path
) -> None:
    cfg = case(name, tmp_path)
    simulated = simulator(cfg)
    model, task, samples = real(cfg, BATCH)
    checkpoint_activations(simulated.model, mode)
    checkpoint_activations(model, mode)
    with FlopCounterMode(display=False) as counter:
        task.train_step(model, samples)["loss"].backward()
    model.zero_grad(set_to_none=True)
    step = simulated(BATCH)
    assert step.all_flops == counter.get_total_flops() > 0
    pictures = samples["image"].nbytes  # there before the profile begins, but not the simulation
    expected = measured_peak(model, task, samples) + pictures
    assert step.peak == pytest.approx(expected, rel=0.01)


def test_weights_gradients_and_moments_are_those_of_a_real_optimizer() -> None:
    cfg = recipe()
    simulated = simulator(cfg)
    model, task, samples = real(cfg, BATCH)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    task.train_step(model, samples)["loss"].backward()
    optimizer.step()
    needed = memory("ddp", sizes_of(simulated.model), simulated(BATCH), world=2)
    assert needed.weights == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert needed.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert needed.optimizer == sum(m.nbytes for m in moments)


def test_recomputation_takes_less_memory_and_more_operations(tmp_path: Path) -> None:
    simulated = simulator(stage2(tmp_path, "opt"))
    kept = simulated(BATCH)
    checkpoint_activations(simulated.model, "recompute")
    again = simulated(BATCH)
    assert again.activations < kept.activations
    assert again.flops["backward"] > kept.flops["backward"]
    assert {**again.flops, "backward": 0} == {**kept.flops, "backward": 0}
    offloaded = again.with_offloading()
    assert offloaded.activations < again.activations
    assert 0 < again.activations - offloaded.activations < offloaded.offloaded


def test_a_gpu_keeps_no_attention_probabilities_and_small_dropout_masks() -> None:
    cfg = recipe({"qformer": {**QFORMER, "dropout": 0.1, "attention_dropout": 0.1}})
    gpu, cpu = simulator(cfg, gpu=True)(BATCH), simulator(cfg)(BATCH)
    assert gpu.activations < cpu.activations
    assert torch.nn.functional.dropout.__module__ == "torch.nn.functional"


def test_half_precision_takes_less_than_single_and_more_than_half_of_it() -> None:
    cfg = recipe({"objectives": ["itc"]})  # the others are mostly logits, which stay in float32
    wide, half = simulator(cfg, gpu=True), simulator(cfg, gpu=True)
    half.precision = "bf16"
    assert 0.5 < half(64).activations / wide(64).activations < 0.95


@pytest.mark.slow
def test_two_real_processes_compute_and_hold_as_much(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = str(Path(__file__).with_name("two_processes.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path / f"{r}.json")],
            env={**os.environ, **launcher, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    simulated = simulator(recipe())
    step = simulated(BATCH, world=2)
    needed = memory("fsdp", sizes_of(simulated.model), step, world=2)
    for r in range(2):
        found = json.loads((tmp_path / f"{r}.json").read_text())
        assert found["flops"] == step.all_flops
        # Rows that do not divide by two lie on one process.
        assert found["weights"] == pytest.approx(needed.weights, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["none", "recompute"])
def test_memory_is_what_cuda_gives_out(mode: str) -> None:
    big = {**QFORMER, "hidden_size": 256, "dropout": 0.1, "attention_dropout": 0.1}
    cfg = recipe({"qformer": big})
    simulated = simulator(cfg, gpu=True)
    simulated.precision = "bf16"
    model, task, samples = real(cfg, 64, device="cuda")
    checkpoint_activations(simulated.model, mode)
    checkpoint_activations(model, mode)
    for _ in range(2):  # the first step makes the workspaces of the libraries
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = task.train_step(model, samples)["loss"]
        loss.backward()
        del loss
    measured = torch.cuda.max_memory_allocated() - before + samples["image"].nbytes
    assert simulated(64).peak == pytest.approx(measured, rel=0.1)
