"""int8 and fp8 for what is frozen, through torchao: smaller weights, and faster products.

Weights get one scale for each output, activations one for each row, found as they come; the layer
computes in 8 bits and returns the type it was given. A tower that is looked at without gradient
needs no more. Through a language model gradients travel to the image tokens; they take the weights
for what they are and the rounding of activations for nothing (`Through`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.logging import get_logger
from lavislite.common.sharded import is_quantized
from lavislite.models.fingerprint import keep_fingerprint
from lavislite.models.language.extras import require
from lavislite.models.vision.base import QUANTIZATIONS

logger = get_logger(__name__)

_MULTIPLE = 16  # of both sides of a weight, for the kernels of either kind
_FP8_SINCE = (8, 9)  # compute capability


def require_quantization(kind: str | None, key: str) -> None:
    """Look, before anything is loaded, whether this machine can do what `key` asks for.

    Raises:
        UserError: torchao is not installed, or the GPU has no fp8.
    """
    if kind not in QUANTIZATIONS:
        return
    require("torchao", "quantization", f"{key}: {kind}")
    if kind != "fp8":
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"{key}: fp8 needs a GPU of compute capability 8.9 (L4, RTX 4090, H100 and newer); "
            "there is none here. int8 also runs on CPUs."
        )
    have = torch.cuda.get_device_capability()
    if have < _FP8_SINCE:
        raise UserError(
            f"{key}: fp8 needs compute capability 8.9 or more; {torch.cuda.get_device_name()} has "
            f"{have[0]}.{have[1]}. Use int8, or null for bf16."
        )


def quantize(
    module: nn.Module, kind: str, key: str, *, fingerprint: str, gradients: bool = False
) -> None:
    """Keep the weights of the linear layers of the frozen `module` in 8 bits, in place.

    Left alone are layers of other classes, output heads of language models, sizes that the kernels
    do not take, and what trains.

    Args:
        kind: "int8" or "fp8".
        key: the option it comes from, for messages.
        fingerprint: of the weights as they are, which goes on naming them.
        gradients: what goes through the module gets a gradient.

    Raises:
        UserError: see `require_quantization`.
        ConfigError: no layer can be quantised.
    """
    require_quantization(kind, key)
    from torchao.quantization import quantize_

    layers = _layers(module)
    if not layers:
        raise ConfigError(
            f"{key}: {type(module).__name__} has no linear layers whose sizes are multiples of "
            f"{_MULTIPLE}, which {kind} needs. Set it to null."
        )
    keep_fingerprint(module, fingerprint)
    for layer in layers:
        quantize_(layer, _config(kind, layer.weight), lambda *_: True)
        if gradients:
            layer.__class__ = Through
    logger.info("%s: %s, %d linear layers", key, kind, len(layers))


def check_whole(module: nn.Module) -> None:
    """Raise a UserError when weights of `module`, which shall be written, are in 8 bits."""
    for name, parameter in module.named_parameters():
        if is_quantized(parameter):
            part = "language" if name.startswith("language.") else "vision"
            raise UserError(
                f"The model cannot be written: '{name}' is quantised. Load it with "
                f"model.{part}.quantization=null."
            )


class Through(nn.Linear):
    """A quantised linear layer whose input gets a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """x W^T + b in 8 bits; backward multiplies with the weights at their own precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [grad] = grads
        return grad @ ctx.weight.dequantize().to(grad.dtype), None, None


def _layers(module: nn.Module) -> Sequence[nn.Linear]:
    parts: list[Any] = [m for m in module.modules() if hasattr(m, "get_output_embeddings")]
    heads = {id(part.get_output_embeddings()) for part in parts}
    return [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear
        and id(layer) not in heads
        and not layer.weight.requires_grad
        and not any(size % _MULTIPLE for size in layer.weight.shape)
    ]


def _config(kind: str, weight: Tensor) -> Any:
    """torchao's configuration; it is not to change how other code is compiled."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        PerTensor,
    )

    if kind == "int8":
        from torchao.utils import should_reduce_range

        narrow = not torch.cuda.is_available() and should_reduce_range(weight.device)
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=narrow)
    # Scales by row: bf16, since Hopper.
    rows = weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability() >= (9, 0)
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow() if rows else PerTensor(), set_inductor_config=False
    )
