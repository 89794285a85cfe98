"""``run.compile``: the same numbers, nothing compiled after a while, plain words on failure."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compile_parts import batch, build, losses, make_step
from runner_parts import Model, make_runner, run_config
from torch import Tensor, nn

from lavislite.common.errors import ConfigError, TrainingError
from lavislite.models.base import BaseModel
from lavislite.runners import compile as compiling

LENGTHS = (3, 12)  # words: texts of both padded lengths


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace only, which is what decides about recompilation; torch's limits as they were."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    names = ("recompile_limit", "accumulated_recompile_limit", "optimize_ddp")
    with dynamo.config.patch({name: getattr(dynamo.config, name) for name in names}):
        yield


class Stack(BaseModel):
    """Two layers in a tower."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x).tanh()

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))

    def towers(self) -> list[nn.Module]:
        return [self.layers]

    def forward(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        x = samples["image"]
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.square().mean()}


class Deep(Model):
    """The runner's toy model with a tower before it."""

    def __init__(self) -> None:
        super().__init__(dropout=0)
        torch.manual_seed(1)
        self.layers = nn.ModuleList(Stack.Layer() for _ in range(2))

    def towers(self) -> list[nn.Module]:
        return [self.layers]

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        x = samples["image"]
        for layer in self.layers:
            x = layer(x)
        return super().forward({**samples, "image": x})


def rows(number: int) -> dict[str, Tensor]:
    return {"image": torch.ones(number, 4)}


@pytest.mark.parametrize("kind", ["stage1", "opt", pytest.param("t5", marks=pytest.mark.slow)])
def test_after_the_first_steps_nothing_is_compiled_and_losses_are_the_same(
    kind: str, tmp_path: Path
) -> None:
    plain, compiled = build(kind, tmp_path), build(kind, tmp_path)
    names = list(compiled.state_dict())
    reference, step = make_step(plain), make_step(compiled, compile=True)
    assert losses(step, range(4), LENGTHS) == pytest.approx(
        losses(reference, range(4), LENGTHS), abs=1e-5
    )
    warm, more = compiling.pieces(), range(4, 14)
    assert warm > 0
    every = tuple(range(2, 13))
    assert losses(step, more, every) == pytest.approx(losses(reference, more, every), abs=1e-5)
    assert compiling.pieces() == warm
    assert list(compiled.state_dict()) == names  # checkpoints know nothing of it
    ours, theirs = (s.strategy.trainable_state() for s in (step, reference))
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("mode", ["recompute", "offload"])
def test_layers_that_are_computed_again_are_the_compiled_ones(mode: str, tmp_path: Path) -> None:
    found = []
    for options in ({}, {"compile": True, "activation_checkpointing": mode}):
        step = make_step(build("opt", tmp_path), **options)
        found.append(losses(step, range(2), (3,)))
    assert compiling.pieces() > 0
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_evaluation_computes_without_compiled_code_and_without_compiling(tmp_path: Path) -> None:
    model = build("stage1", tmp_path)
    step = make_step(model, compile=True)
    losses(step, range(2), (3,))
    known, other = compiling.pieces(), batch(9, 5, size=3)
    model.eval()
    with step.whole_model(), torch.no_grad():
        seen = model(other)["loss"]
        model.generate({"image": other["image"]})
    assert compiling.pieces() == known
    twin = build("stage1", tmp_path)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert seen.item() == pytest.approx(twin.eval()(other)["loss"].item(), abs=1e-6)


def test_operations_are_counted_as_without_compiling(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        model = build("stage1", tmp_path)
        model.pad_texts_to(compiling.PAD_TO)
        step = make_step(model, compile=compiled)
        losses(step, range(2), (3,))
        found.append(step.arithmetic.rates(1e9)["tflops"])
    assert found[0] == found[1] > 0


def test_a_model_that_compiles_on_and_on_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "_SETTLED", 2)
    step = make_step(Stack(), compile=True)
    with caplog.at_level(logging.INFO):
        for number in range(6):
            step(number, 0.1, [rows(1 if number < 3 else number)])
            step.read()
    told = [r.getMessage() for r in caplog.records if "run.compile" in r.getMessage()]
    assert "2 pieces of code for 2 layers" in told[0]
    assert len(told) == 2
    assert "more pieces of code were compiled after 2 steps" in told[1]
    assert "run.compile=false" in told[1]


def test_a_failure_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiling, "_BACKEND", broken)
    step = make_step(Stack(), compile=True)
    with pytest.raises(TrainingError, match=r"no such instruction.*run\.compile=false"):
        step(0, 0.1, [rows(2)])


def test_a_compiled_run_goes_on_without_compiling_and_ends_alike(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_every_steps": 3, "valid_splits": ["val"]}
    alone = make_runner(tmp_path / "alone", model=Deep(), **options)
    alone.train()
    assert compiling.pieces() == 0
    begun = make_runner(tmp_path / "begun", model=Deep(), **options, compile=True)
    metrics = begun.train()
    assert compiling.pieces() > 0
    half = str(tmp_path / "begun/checkpoints/step_3")
    gone_on = make_runner(tmp_path / "gone_on", model=Deep(), **options, resume=half)
    assert gone_on.train() == pytest.approx(metrics, rel=1e-5)
    for name, weight in alone.model.state_dict().items():
        for other in (begun, gone_on):
            assert torch.allclose(other.model.state_dict()[name], weight, atol=1e-6), name


def test_nothing_is_compiled_unless_asked_for(tmp_path: Path) -> None:
    losses(make_step(build("stage1", tmp_path)), range(1), (3,))
    assert compiling.pieces() == 0


def test_a_model_without_layers_says_so_and_trains(caplog: pytest.LogCaptureFixture) -> None:
    step = make_step(Model(dropout=0), compile=True)
    assert "no repeated layers" in caplog.text
    step(0, 0.1, [{"image": torch.ones(2, 4), "label": torch.tensor([0, 1])}])
    assert step.read()["loss"] > 0


def test_modes(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reduce-overhead'"):
        run_config(compile_mode="reduce_overhead").check()
    with caplog.at_level(logging.INFO):
        step = make_step(Stack(), compile=True, compile_mode="reduce-overhead")
    assert "run.compile_mode: reduce-overhead is for GPUs" in caplog.text
    step(0, 0.1, [rows(2)])
    assert compiling.pieces() == 2  # the first layer's input wants no gradient


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_machine_code_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantization: str | None
) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", "inductor")
    found = []
    for compiled in (False, True):
        step = make_step(build("opt", tmp_path, quantization), compile=compiled)
        found.append(losses(step, range(2), (3,)))
    assert found[0] == pytest.approx(found[1], abs=1e-4 if quantization is None else 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("kind", ["stage1", "opt"])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, mode: str) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", "inductor")
    reference = make_step(build(kind, tmp_path), "cuda")
    step = make_step(build(kind, tmp_path), "cuda", compile=True, compile_mode=mode)
    for numbers in (range(4), range(4, 8)):
        ours, theirs = (losses(s, numbers, LENGTHS) for s in (step, reference))
        assert ours == pytest.approx(theirs, rel=1e-2)
        if numbers.start == 0:
            warm = compiling.pieces()
    assert compiling.pieces() == warm
