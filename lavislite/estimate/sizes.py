"""The bytes of a model's parameters, by what FSDP does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lavislite.estimate.step import towers
from lavislite.runners.blocks import blocks_of, towers_of


@dataclass(frozen=True)
class Sizes:
    """Bytes as stored; trained parameters are float32.

    Attributes:
        frozen_layers, frozen_rest: in the towers' layers, which FSDP divides, and outside of them
            (with buffers), which every process keeps.
        trained_layers, trained_rest: likewise; the rest is whole during a step.
        largest_layer: the largest of the towers' layers.
        backward_layers: frozen layers that the backward pass goes through.
        parameters: part -> numbers of all and of trained parameters; tied ones count once.
        sharded: names of the trained parameters in layers.
    """

    frozen_layers: int
    frozen_rest: int
    trained_layers: int
    trained_rest: int
    largest_layer: int
    backward_layers: int
    parameters: dict[str, tuple[int, int]]
    sharded: frozenset[str]

    @property
    def weights(self) -> int:
        return self.frozen_layers + self.frozen_rest + self.trained

    @property
    def trained(self) -> int:
        return self.trained_layers + self.trained_rest


def sizes_of(model: Any) -> Sizes:
    """Measure `model`; its tensors may be without numbers."""
    layers = [block for tower in towers_of(model) for block in blocks_of(tower)]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    own = list(model.named_parameters())
    vision = {id(p) for p in model.visual_encoder.parameters()}
    skipped = vision if model.vision_is_frozen else set()  # computed without gradient

    def total(*, trained: bool, divided: bool) -> int:
        return sum(
            _bytes(p) for _, p in own if p.requires_grad is trained and (id(p) in inside) is divided
        )

    return Sizes(
        frozen_layers=total(trained=False, divided=True),
        frozen_rest=total(trained=False, divided=False) + sum(map(_bytes, model.buffers())),
        trained_layers=total(trained=True, divided=True),
        trained_rest=total(trained=True, divided=False),
        largest_layer=max((sum(map(_bytes, y.parameters())) for y in layers), default=0),
        backward_layers=sum(
            _bytes(p) for _, p in own if id(p) in inside - skipped and not p.requires_grad
        ),
        parameters=_by_part(model, own),
        sharded=frozenset(n for n, p in own if p.requires_grad and id(p) in inside),
    )


def _by_part(model: Any, own: list[tuple[str, Any]]) -> dict[str, tuple[int, int]]:
    part_of = {id(p): name for name, part in towers(model).items() for p in part.parameters()}
    counts = dict.fromkeys((*towers(model), "bridge"), (0, 0))
    for _, p in own:
        part = part_of.get(id(p), "bridge")
        every, trained = counts[part]
        counts[part] = (every + p.numel(), trained + p.numel() * p.requires_grad)
    return counts


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
