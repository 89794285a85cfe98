"""One optimizer step: accumulation, learning rates, clipping, number formats, and bad numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from runner_parts import Data, Model, Task, run_config

from lavislite.common.errors import ConfigError, TrainingError
from lavislite.runners.optim import make_autocast, resolve_precision
from lavislite.runners.step import TrainStep

CPU = torch.device("cpu")


def make_step(model: Model, precision: str = "fp32", **options: Any) -> TrainStep:
    return TrainStep(
        run_config(**options),
        task=Task(),
        model=model,
        device=CPU,
        precision=precision,
        autocast=make_autocast(precision, CPU),
        record_id=lambda i: f"toy#{i}",
    )


def batch(*indices: int) -> dict[str, Any]:
    data = Data(24, split="val")
    return data.collate([data[i] for i in indices])


def test_accumulated_micro_batches_equal_one_large_batch() -> None:
    whole, parts = Model(dropout=0), Model(dropout=0)
    make_step(whole)(0, 0.1, [batch(0, 1, 2, 3)])
    make_step(parts)(0, 0.1, [batch(0, 1), batch(2, 3)])
    assert torch.allclose(whole.head.weight, parts.head.weight, atol=1e-6)


def test_logged_losses_are_not_divided_by_the_number_of_micro_batches() -> None:
    model = Model(dropout=0)
    expected = model(batch(0, 1))["loss"].item(), model(batch(2, 3))["loss"].item()
    step = make_step(model)
    step(0, 0.0, [batch(0, 1), batch(2, 3)])
    assert step.read()["loss"] == pytest.approx(sum(expected) / 2)


def test_lr_scale_of_a_group_is_honoured() -> None:
    model = Model(dropout=0)
    groups = [
        {"params": [model.head.weight], "names": ["w"], "weight_decay": 0.0, "lr_scale": 0.0},
        {"params": [model.head.bias], "names": ["b"], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    model.get_optimizer_params = lambda *_: groups  # type: ignore[method-assign]
    before = copy.deepcopy(model.head.state_dict())
    step = make_step(model)
    step(0, 0.2, [batch(0, 1)])
    assert torch.equal(model.head.weight, before["weight"])
    # Adam's first step has the size of the learning rate.
    moved = (model.head.bias - before["bias"]).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.1), rtol=1e-3)


def test_grad_norm_is_logged_without_clipping_and_before_clipping() -> None:
    free, clipped = make_step(Model(dropout=0)), make_step(Model(dropout=0), clip_grad_norm=1e-3)
    free(0, 0.1, [batch(0, 1)])
    clipped(0, 0.1, [batch(0, 1)])
    assert free.read()["grad_norm"] == pytest.approx(clipped.read()["grad_norm"])
    state = clipped.optimizer.state_dict()["state"]
    first_moments = torch.cat([s["exp_avg"].flatten() for s in state.values()])
    assert first_moments.norm() / (1 - 0.9) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_formats_train_with_fp32_weights(precision: str) -> None:
    model = Model(dropout=0)
    step = make_step(model, precision)
    losses = []
    for k in range(20):
        step(k, 0.1, [batch(0, 1, 2, 3)])
        losses.append(step.read()["loss"])
    assert losses[-1] < losses[0] - 0.3
    assert model.head.weight.dtype == torch.float32


def test_loss_that_is_not_a_number_stops_before_the_weights_change() -> None:
    model = Model(dropout=0)
    step = make_step(model)
    before = copy.deepcopy(model.state_dict())
    bad = batch(4, 7)
    bad["image"][1] = float("nan")
    with pytest.raises(TrainingError, match=r"step 6 \(gradient norm not a number\).*toy#4, toy#7"):
        step(5, 0.1, [batch(0, 1), bad])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_fp16_overflow_is_skipped_and_the_run_goes_on() -> None:
    model = Model(dropout=0)
    step = make_step(model, "fp16")
    before = model.head.weight.detach().clone()
    handle = model.head.weight.register_hook(lambda g: g * float("inf"))
    step(0, 0.1, [batch(0, 1)])
    assert torch.equal(model.head.weight, before)
    handle.remove()
    step(1, 0.1, [batch(0, 1)])
    assert not torch.equal(model.head.weight, before)


def test_trainable_half_parameters_are_refused_by_name() -> None:
    model = Model()
    model.head.half()
    with pytest.raises(ConfigError, match=r"'head\.weight' is torch\.float16.*precision: fp32"):
        make_step(model)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        make_step(Model().requires_grad_(False))


def test_precision_auto_and_typos() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        resolve_precision("bff16", CPU)


def test_where_the_host_does_not_look_the_optimizer_skips_and_reading_raises() -> None:
    # As on a GPU: nothing waits for the device until the log is due.
    model = Model(dropout=0)
    step = make_step(model)
    step.guard.every_step = False
    bad = batch(4, 7)
    bad["image"][1] = float("nan")
    step(0, 0.1, [batch(0, 1)])
    after_first = copy.deepcopy(model.state_dict())
    step(1, 0.1, [bad])
    assert all(torch.equal(after_first[name], x) for name, x in model.state_dict().items())
    step(2, 0.1, [batch(0, 1)])
    assert not torch.equal(after_first["head.weight"], model.head.weight)
    with pytest.raises(TrainingError, match=r"at step 2 .*toy#4, toy#7\."):
        step.read()
