"""One training step on tensors without numbers: what it computes and what memory it takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from lavislite.estimate.blueprint import imagine
from lavislite.estimate.gpu_habits import gpu_habits
from lavislite.estimate.ledger import Ledger
from lavislite.estimate.processes import as_one_of
from lavislite.estimate.samples import make_samples
from lavislite.runners.blocks import blocks_of, towers_of
from lavislite.runners.optim import PRECISIONS


@dataclass(frozen=True)
class Step:
    """Forward and backward pass of one micro-batch on one process.

    Attributes:
        batch: samples.
        flops: "vision", "language" and "bridge" (all else) forward, and "backward" (with what is
            computed again in it).
        activations, peak, peak_sharded: bytes at the worst moment; see `Ledger`.
        layer_inputs: bytes of what the layers start from, as far as it could wait in host memory
            when they are computed again: all of it, and the most that one layer has.
        offloaded: bytes that do wait there.
    """

    batch: int
    flops: dict[str, int]
    activations: int
    peak: int
    peak_sharded: int
    layer_inputs: tuple[int, int]
    offloaded: int = 0

    @property
    def all_flops(self) -> int:
        return sum(self.flops.values())

    def with_offloading(self) -> Step:
        """The same, but the inputs of the layers wait in host memory, except for two on their way.

        Right for a step whose layers are computed again: at its worst moment it holds all inputs.
        """
        every, most = self.layer_inputs
        away = max(every - 2 * most, 0)
        return replace(
            self,
            activations=self.activations - away,
            peak=self.peak - away,
            peak_sharded=self.peak_sharded - away,
            offloaded=every,
        )


class Simulator:
    """Takes training steps of `model` (from `build_blueprint`) at any batch size.

    Args:
        task: from `build_task`.
        precision: of the run: fp32, bf16 or fp16.
        sharded: ids of the parameters whose gradients FSDP would divide at once.
        gpu: False follows the step as a CPU takes it.
    """

    def __init__(
        self, model: Any, task: Any, *, precision: str, sharded: frozenset[str], gpu: bool = True
    ) -> None:
        self.model, self.task, self.precision, self.gpu = model, task, precision, gpu
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        imagine(model, self.mode)
        if hasattr(model, "pack"):
            model.pack = _with_numbers(model.pack)
        if hasattr(model, "reader"):
            model.reader.ready = _with_numbers(model.reader.ready)
        self._sharded = sharded
        self._image_size = model.cfg.vision.image_size

    def __call__(self, batch: int, world: int = 1) -> Step:
        """The step of one of `world` processes with `batch` samples each."""
        ledger = Ledger([*self.model.parameters(), *self.model.buffers()])
        inputs = LayerInputs(ledger)
        with ExitStack() as stack:
            stack.enter_context(as_one_of(world))
            stack.enter_context(self._booking(ledger))
            stack.enter_context(inputs.watched(self.model))
            stack.enter_context(self.mode)
            stack.enter_context(ledger)
            if self.gpu:
                stack.enter_context(gpu_habits())
            samples = make_samples(self.model, self.task, batch, self._image_size)
            ledger.part = "bridge"
            with torch.autocast(
                "cpu", PRECISIONS[self.precision], enabled=self.precision != "fp32"
            ):
                loss = self.task.train_step(self.model, samples)["loss"]
            ledger.part = "backward"
            loss.backward()
            del loss, samples
        self.model.zero_grad(set_to_none=True)
        return Step(
            batch,
            dict(ledger.flops),
            ledger.activations,
            ledger.peak,
            ledger.peak_sharded,
            (inputs.total, inputs.most),
        )

    @contextmanager
    def _booking(self, ledger: Ledger) -> Iterator[None]:
        """Tell the ledger which part computes, and when a gradient is whole."""
        handles: list[Any] = []
        for name, part in towers(self.model).items():
            handles.append(part.register_forward_pre_hook(_turn(ledger, name)))
            handles.append(part.register_forward_hook(_turn(ledger, "bridge")))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                book = _book(ledger, sharded=name in self._sharded)
                handles.append(parameter.register_post_accumulate_grad_hook(book))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class LayerInputs:
    """Adds up what the layers start from in the forward pass, where gradients are wanted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: dict[int, weakref.ref[Any]] = {}  # of storages, which it must not keep alive
        self.total = self.most = 0

    @contextmanager
    def watched(self, model: Any) -> Iterator[None]:
        """Inside, calls of the layers of `model` are looked at."""
        layers = [block for tower in towers_of(model) for block in blocks_of(tower)]
        layers += blocks_of(model.Qformer)
        handles = [layer.register_forward_pre_hook(self._look) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._ledger.part == "backward" or not torch.is_grad_enabled():
            return
        storages = {id(s): s for s in (x.untyped_storage() for x in args if isinstance(x, Tensor))}
        self.most = max(self.most, sum(s.nbytes() for s in storages.values()))
        for key, storage in storages.items():
            if key not in self._seen or self._seen[key]() is not storage:
                self._seen[key] = weakref.ref(storage)
                self.total += storage.nbytes()


def towers(model: Any) -> dict[str, nn.Module]:
    """The parts that FLOPs are told apart for."""
    language = getattr(model, "language", None)
    found: dict[str, nn.Module] = {"vision": model.visual_encoder}
    if language is not None:
        found["language"] = getattr(language, "model", language)
    return found


def _turn(ledger: Ledger, part: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        if ledger.part != "backward":  # a layer that is computed again
            ledger.part = part

    return hook


def _book(ledger: Ledger, *, sharded: bool) -> Callable[[Tensor], None]:
    return lambda parameter: ledger.book_gradient(parameter, sharded=sharded)


def _with_numbers(pack: Callable[..., Any]) -> Callable[..., Any]:
    """Token ids are real: which of them are padding decides about shapes."""

    def packed(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return pack(*args, **kwargs)

    return packed
