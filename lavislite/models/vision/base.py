"""Vision backbones: what they must be, how they are built, and what a wrong one is told."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class VisionConfig:
    """Which image encoder, and how much of it.

    name: a registered name, ``timm:<name>``, or ``hf:<hub id or folder>``.
    precision: compute dtype of a frozen backbone: fp32, bf16 or fp16; auto is bf16 on CUDA.
    weights: null for the published ones, "none" for random ones, or a file, folder, URL or hub id.
    drop_blocks, final_norm: how many of the last blocks to leave out, and whether the norm after
        them stays; null is the backbone's own choice (BLIP-2's presets 1 and false, others 0 and
        true).
    options: further arguments of the backbone's constructor.
    """

    name: str = "eva_clip_g"
    image_size: int = 224
    freeze: bool = True
    precision: str = "auto"
    weights: str | None = None
    drop_blocks: int | None = None
    final_norm: bool | None = None
    drop_path_rate: float = 0.0
    grad_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class VisionBackbone(Protocol):
    """[B, 3, H, W] images -> [B, T, num_features] patch (and class) tokens.

    Optional attributes: ``image_size``, ``image_mean`` and ``image_std`` (checked against the
    processor), ``blocks`` (for layer-wise learning rates and activation checkpointing).
    """

    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...


def build_vision(cfg: VisionConfig) -> nn.Module:
    """Build the backbone, try it on one image, freeze it if asked.

    Raises:
        UserError: unknown name, weights not to be had, or an output of the wrong shape.
    """
    dtype = _frozen_dtype(cfg)
    prefix, _, rest = cfg.name.partition(":")
    target = catalog.vision_backbones.get(prefix if rest else cfg.name)
    backbone = _construct(target, cfg, rest, dtype)
    if cfg.freeze:
        backbone.requires_grad_(False).to(dtype).eval()
    check_backbone(backbone, cfg.name, cfg.image_size)
    return backbone


def _frozen_dtype(cfg: VisionConfig) -> torch.dtype:
    if cfg.precision == "auto":
        return torch.bfloat16 if cfg.freeze and torch.cuda.is_available() else torch.float32
    if cfg.precision not in DTYPES:
        raise ConfigError(
            f"model.vision.precision: '{cfg.precision}' is unknown."
            f"{did_you_mean(cfg.precision, DTYPES)} Known: auto, {', '.join(DTYPES)}."
        )
    return DTYPES[cfg.precision] if cfg.freeze else torch.float32


def _construct(target: Any, cfg: VisionConfig, rest: str, dtype: torch.dtype) -> nn.Module:
    """Call `target` with those of our arguments that its signature accepts."""
    offered: dict[str, Any] = {
        "image_size": cfg.image_size,
        "weights": cfg.weights,
        "drop_blocks": cfg.drop_blocks,
        "final_norm": cfg.final_norm,
        "drop_path_rate": cfg.drop_path_rate,
        "grad_checkpointing": cfg.grad_checkpointing,
        "dtype": dtype,
    }
    offered = {key: value for key, value in offered.items() if value is not None}
    if rest:
        offered["name"] = rest
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        offered = {key: value for key, value in offered.items() if key in parameters}
        for key in cfg.options:
            if key not in parameters:
                raise ConfigError(
                    f"model.vision.options: '{cfg.name}' takes no argument '{key}'."
                    f"{did_you_mean(key, parameters)} It takes: {', '.join(parameters) or 'none'}."
                )
    return target(**{**offered, **cfg.options})


@torch.no_grad()
def check_backbone(backbone: nn.Module, name: str, image_size: int) -> None:
    """One forward of one blank image, in evaluation mode.

    Raises:
        ConfigError: `num_features` is missing, the forward fails, or the shape is wrong.
    """
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise ConfigError(
            f"The vision backbone '{name}' needs an integer attribute num_features, the width of its "
            "tokens."
        )
    some = next(iter(backbone.parameters()), torch.zeros(()))
    images = torch.zeros(1, 3, image_size, image_size, device=some.device, dtype=some.dtype)
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with _shapes_only(backbone):
            tokens = backbone(images)
    except Exception as error:  # user code may fail in any way: say whose it is, keep the cause
        raise ConfigError(
            f"The vision backbone '{name}' fails on an image [1, 3, {image_size}, {image_size}]: "
            f"{type(error).__name__}: {error}{_where(error)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
    if not isinstance(shape, tuple) or len(shape) != 3 or shape[0] != 1 or shape[2] != width:
        raise ConfigError(
            f"'{name}' must map [B, 3, {image_size}, {image_size}] to [B, tokens, {width}]; "
            f"it returned {shape}."
        )


def _shapes_only(backbone: nn.Module) -> AbstractContextManager[Any]:
    """A large tower on the CPU computes shapes without numbers, which saves seconds at each start."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters = list(backbone.parameters())
    large = sum(p.numel() for p in parameters) > 100_000_000
    if large and all(p.device.type == "cpu" for p in parameters):
        return FakeTensorMode(allow_non_fake_inputs=True)
    return nullcontext()


def _where(error: Exception) -> str:
    """File and line of the innermost frame of `error`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def vision_fingerprint(module: nn.Module) -> str:
    """Sixteen hexadecimal digits from the names, shapes and a few values of each tensor."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if tensor.numel() and not tensor.is_meta:
            step = max(1, tensor.numel() // 7)
            some: Sequence[float] = tensor.detach().flatten()[::step][:8].float().tolist()
            digest.update(" ".join(f"{value:.3e}" for value in some).encode())
    return digest.hexdigest()
