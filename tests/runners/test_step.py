"""One optimizer step: accumulation, learning rates, clipping, number formats, and bad numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
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


def spoilt(*indices: int) -> dict[str, Any]:
    """A batch whose last picture is full of NaN."""
    samples = batch(*indices)
    samples["image"][-1] = float("nan")
    return samples


def assert_equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def adam(step: TrainStep) -> list[dict[str, torch.Tensor]]:
    return list(step.optimizer.state_dict()["state"].values())


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
    with pytest.raises(TrainingError, match=r"step 6 \(gradient norm not a number\).*toy#4, toy#7"):
        step(5, 0.1, [batch(0, 1), spoilt(4, 7)])
    assert_equal(model.state_dict(), before)


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


def test_where_the_host_does_not_look_nothing_changes_any_more_and_reading_raises() -> None:
    # As on a GPU: nothing waits for the device until the log is due.
    model = Model(dropout=0)
    step = make_step(model)
    step.guard.every_step = False
    step(0, 0.1, [batch(0, 1)])
    after_first = copy.deepcopy(model.state_dict())
    step(1, 0.1, [spoilt(4, 7)])
    step(2, 0.1, [batch(0, 1)])
    assert_equal(model.state_dict(), after_first)
    with pytest.raises(TrainingError, match=r"at step 2 .*toy#4, toy#7\."):
        step.read()


@pytest.mark.parametrize("looking", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_left_out_is_as_if_it_had_not_been(looking: bool, precision: str) -> None:
    def run(batches: list[dict[str, Any]]) -> TrainStep:
        step = make_step(Model(dropout=0), precision, skip_nonfinite=1)
        step.guard.every_step = looking
        for k, samples in enumerate(batches):
            step(k, 0.1, [samples])
        return step

    without, left_out = run([batch(0, 1), batch(2, 3)]), run([batch(0, 1), spoilt(4), batch(2, 3)])
    if precision == "fp16":  # there the scaler's answer to it is another scale
        assert left_out.scaler.get_scale() < without.scaler.get_scale()
    else:
        assert_equal(
            left_out.strategy.unwrapped.state_dict(), without.strategy.unwrapped.state_dict()
        )
        for mine, other in zip(adam(left_out), adam(without), strict=True):
            assert_equal(mine, other)
    row, other_row = left_out.read(), without.read()
    assert row.pop("skipped") == 1
    assert other_row.pop("skipped") == 0
    assert row == pytest.approx(other_row, rel=1e-3 if precision == "fp16" else 1e-7)


def test_one_more_than_allowed_stops() -> None:
    step = make_step(Model(dropout=0), skip_nonfinite=2)
    step(0, 0.1, [spoilt(1)])
    step(1, 0.1, [batch(0, 1)])
    step(2, 0.1, [spoilt(2)])
    with pytest.raises(TrainingError, match=r"at step 4 .*2 such steps .* before.*: toy#3\."):
        step(3, 0.1, [spoilt(3)])


def test_a_loss_that_is_not_finite_is_left_out_even_if_its_gradient_is() -> None:
    model = Model(dropout=0)
    step = make_step(model, skip_nonfinite=1)
    step.task.train_step = lambda m, samples: {"loss": m(samples)["loss"] + float("inf")}
    before = copy.deepcopy(model.state_dict())
    step(0, 0.1, [batch(0, 1)])
    assert_equal(model.state_dict(), before)
    assert step.read()["skipped"] == 1


def test_batch_norms_forget_a_step_that_is_left_out() -> None:
    model = Model(dropout=0)
    model.dropout = torch.nn.BatchNorm1d(8)
    step = make_step(model, skip_nonfinite=1)
    step(0, 0.1, [batch(0, 1)])
    before = copy.deepcopy(model.state_dict())
    step(1, 0.1, [spoilt(4, 7)])
    assert_equal(model.state_dict(), before)
    step(2, 0.1, [batch(2, 3)])
    assert model.dropout.num_batches_tracked == 2


def test_an_optimizer_without_a_fused_kernel_skips_as_well() -> None:
    model = Model(dropout=0)
    step = make_step(model, skip_nonfinite=1)
    step.optimizer = torch.optim.AdamW(model.head.parameters(), fused=False)
    before = copy.deepcopy(model.state_dict())
    step(0, 0.1, [spoilt(4)])
    assert_equal(model.state_dict(), before)
    step(1, 0.1, [batch(0)])
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_after_a_checkpoint_the_next_log_is_the_same(tmp_path: Path) -> None:
    def some(step: TrainStep, steps: range) -> None:
        for k in steps:
            step(k, 0.1, [spoilt(k % 24) if k in (3, 40) else batch(k % 24, (k + 7) % 24)])

    whole = make_step(Model(dropout=0), skip_nonfinite=5, grad_spike=1.2)
    some(whole, range(30))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = make_step(whole.strategy.unwrapped, skip_nonfinite=5, grad_spike=1.2)
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    weights = copy.deepcopy(whole.strategy.unwrapped.state_dict())
    some(whole, range(30, 50))
    expected, events = whole.read(), whole.events()

    resumed.strategy.unwrapped.load_state_dict(weights)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    some(resumed, range(30, 50))
    assert resumed.read() == expected
    assert str(resumed.events()) == str(events)  # NaN equals nothing
    assert {event.kind for event in events} == {"skip", "spike"}
    assert resumed.samples == whole.samples == 98


def test_a_fault_that_stops_the_run_gets_into_no_checkpoint() -> None:
    step = make_step(Model(dropout=0))
    step.guard.every_step = False
    step(0, 0.1, [spoilt(4)])
    with pytest.raises(TrainingError, match=r"at step 1 .*toy#4\."):
        step.state_dict()


def test_flops_are_torchs_own_and_counting_changes_no_result() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, step = Model(dropout=0.5), make_step(Model(dropout=0.5), accum_grad_iters=2)
    with FlopCounterMode(display=False) as counter:
        model(batch(0, 1, 2, 3))["loss"].backward()
    assert counter.get_total_flops() > 0
    torch.manual_seed(0)
    for k in range(2):
        step(k, 0.1, [batch(0, 1), batch(2, 3)])
        assert step.arithmetic.rates(1.0).keys() == ({"tflops"} if k else set())
    per_sample = counter.get_total_flops() / 4
    assert step.arithmetic.rates(5e12)["tflops"] == pytest.approx(5 * per_sample)

    uncounted = make_step(Model(dropout=0.5), accum_grad_iters=2)
    uncounted.arithmetic._steps = 2
    torch.manual_seed(0)
    for k in range(2):
        uncounted(k, 0.1, [batch(0, 1), batch(2, 3)])
    assert_equal(step.strategy.unwrapped.state_dict(), uncounted.strategy.unwrapped.state_dict())


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it() -> None:
    device = torch.device("cuda")
    step = TrainStep(
        run_config(clip_grad_norm=1.0, accum_grad_iters=2),
        task=Task(),
        model=Model(dropout=0.5).to(device),
        device=device,
        precision="bf16",
        autocast=make_autocast("bf16", device),
        record_id=str,
    )
    batches = [
        {name: x.cuda() if name != "index" else x for name, x in batch(*rows).items()}
        for rows in ((0, 1), (2, 3))
    ]
    assert step.optimizer.defaults["fused"]
    for number in range(2):  # buffers are set up, operations counted
        step(number, 0.1, batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2, 0.1, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.read()["loss"] > 0
