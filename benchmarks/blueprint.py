"""Models at their true size without numbers, whose operations can be counted in seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lavislite.estimate.blueprint import build_blueprint, imagine

BATCH = 16
# As the benchmarks of a step draw them: captions of 8 to 15 words, a token each.
CAPTIONS = [" ".join(["word"] * (8 + i % 8)) for i in range(BATCH)]


class Blueprint:
    """A model without numbers, and a batch for it."""

    def __init__(self, cfg: Any, tokens: int) -> None:
        self.model = build_blueprint(SimpleNamespace(model=cfg), "fp32", [])
        batch = {"text_input": CAPTIONS, "image": torch.zeros(BATCH, 3, 1, 1)}
        text = self.model.text_preparer()(batch)["text_tokens"]
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        imagine(self.model, self.mode)
        size, width = cfg.vision.image_size, self.model.ln_vision.normalized_shape[0]
        with self.mode:
            text = _without_numbers(text, self.mode)
            self.image = torch.empty(BATCH, 3, size, size)
            self.features = torch.empty(BATCH, tokens, width)
        self.text = {"text_tokens": text, "text_input": CAPTIONS}

    def step(self, samples: dict[str, Any]) -> None:
        """Forward and backward pass."""
        with self.mode:
            other = torch.arange(BATCH).roll(1)
            drawn = ((other, other),) if hasattr(self.model, "itm_head") else ()
            self.model(samples, *drawn)["loss"].backward()
        self.model.zero_grad(set_to_none=True)

    def tower_gflop(self) -> float:
        """Operations of the frozen tower for the batch, in 1e9."""
        with FlopCounterMode(display=False) as counter, self.mode:
            self.model.tower_features(self.image)
        return counter.get_total_flops() / 1e9

    def gflop(self, *, cached: bool = False) -> float:
        """Operations of a step, in 1e9."""
        seen = {"image_features": self.features} if cached else {"image": self.image}
        with FlopCounterMode(display=False) as counter:
            self.step(self.text | seen)
        return counter.get_total_flops() / 1e9


def _without_numbers(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if hasattr(value, "__dataclass_fields__"):
        parts = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return type(value)(**{name: _without_numbers(part, mode) for name, part in parts.items()})
    return value
