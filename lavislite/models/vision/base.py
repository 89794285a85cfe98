"""Vision backbones: what they must be, how they are built, and what a wrong one is told."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError, UserError
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import Bounds, check_bounds, check_choice
from lavislite.models.fingerprint import fingerprint, kept_fingerprint

logger = get_logger(__name__)

# Values that ask nothing of a backbone: one without such an argument may be left alone.
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "weights": (None, "none"),
    "drop_blocks": (None, 0),
    "final_norm": (None, True),
    "drop_path_rate": (0.0,),
    "grad_checkpointing": (False,),
}
LARGE = 100_000_000  # parameters
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTIZATIONS = ("int8", "fp8")


@dataclass
class VisionConfig:
    """Which image encoder, and how much of it.

    name: a registered name, ``timm:<name>``, or ``hf:<hub id or folder>``.
    precision: compute dtype of a frozen backbone: fp32, bf16 or fp16; auto is bf16 on CUDA and fp32
        elsewhere.
    quantization: of a frozen backbone: "int8" or "fp8" (GPUs of compute capability 8.9), through
        torchao; null for none.
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
    quantization: str | None = None
    weights: str | None = None
    drop_blocks: int | None = None
    final_norm: bool | None = None
    drop_path_rate: float = 0.0
    grad_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError naming the first number that cannot be."""
        bounds: Bounds = {
            "image_size": (1, None),
            "drop_blocks": (0, None),
            "drop_path_rate": (0, 1),
        }
        check_bounds("model.vision", self, bounds)
        if self.quantization is not None:
            check_choice("model.vision.quantization", self.quantization, QUANTIZATIONS)
            if not self.freeze:
                raise ConfigError(
                    f"model.vision.quantization: {self.quantization} is for a frozen backbone. Set "
                    "it to null, or model.vision.freeze=true."
                )


class VisionBackbone(Protocol):
    """[B, 3, H, W] images -> [B, T, num_features] patch (and class) tokens.

    Optional attributes: ``image_size``, ``image_mean`` and ``image_std`` (checked against the
    processor), ``blocks`` (for layer-wise learning rates and activation checkpointing).
    """

    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...


def build_vision(cfg: VisionConfig) -> nn.Module:
    """Build the backbone, try it on one image, freeze it if asked.

    In one that trains, parameters that the tokens do not depend on (pooling heads, mask tokens) are
    frozen, because distributed training waits for their gradients. Weights are not quantised yet: a
    checkpoint may bring others.

    Raises:
        UserError: unknown name, weights not to be had, a setting that the backbone does not take,
            quantization that this machine cannot do, or an output of the wrong shape.
    """
    from lavislite.models.quantize import require_quantization

    require_quantization(cfg.quantization, "model.vision.quantization")
    dtype = _frozen_dtype(cfg)
    prefix, _, rest = cfg.name.partition(":")
    target = catalog.vision_backbones.get(prefix if rest else cfg.name)
    backbone = _construct(target, cfg, rest, dtype)
    if cfg.freeze:
        backbone.requires_grad_(False).to(dtype).eval()
    check_backbone(backbone, cfg.name, cfg.image_size)
    if not cfg.freeze:
        _freeze_unused(backbone, cfg)
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
    asked = {key: getattr(cfg, key) for key in NOTHING_ASKED}
    offered: dict[str, Any] = {"image_size": cfg.image_size, **asked, "dtype": dtype}
    offered = {key: value for key, value in offered.items() if value is not None}
    if rest:
        offered["name"] = rest
    parameters = inspect.signature(target).parameters
    if "name" in parameters and not rest:
        raise ConfigError(f"model.vision.name: '{cfg.name}' needs a model: '{cfg.name}:<name>'.")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(cfg, asked, parameters)
        offered = {key: value for key, value in offered.items() if key in parameters}
    try:
        backbone = target(**{**offered, **cfg.options})
    except UserError:
        raise
    except Exception as error:  # user code may fail in any way: say where, keep the cause
        raise ConfigError(
            f"The vision backbone '{cfg.name}' cannot be built: "
            f"{type(error).__name__}: {error}{_where(error)}"
        ) from error
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"The vision backbone '{cfg.name}' must be a torch.nn.Module, or a function that "
            f"returns one; it gave a {type(backbone).__name__}."
        )
    return backbone


def _refuse_unknown(
    cfg: VisionConfig, asked: Mapping[str, Any], parameters: Mapping[str, Any]
) -> None:
    """A setting that the backbone cannot follow is an error, not ignored."""
    takes = f"It takes: {', '.join(parameters) or 'none'}."
    for key in cfg.options:
        if key not in parameters:
            raise ConfigError(
                f"model.vision.options: '{cfg.name}' takes no argument '{key}'."
                f"{did_you_mean(key, parameters)} {takes}"
            )
    for key, value in asked.items():
        if key not in parameters and value not in NOTHING_ASKED[key]:
            raise ConfigError(
                f"model.vision.{key}: '{cfg.name}' takes no argument '{key}', so {value!r} would "
                f"do nothing. {takes}"
            )


@torch.no_grad()
def check_backbone(backbone: nn.Module, name: str, image_size: int) -> None:
    """One forward of one blank image, in evaluation mode.

    Raises:
        ConfigError: `num_features` is missing, the forward fails, or the shape is wrong.
    """
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise ConfigError(
            f"The vision backbone '{name}' needs an integer attribute num_features, the width of "
            "its tokens."
        )
    try:
        tokens = _try(backbone, image_size)
    except Exception as error:  # user code may fail in any way: say where, keep the cause
        raise ConfigError(
            f"The vision backbone '{name}' fails on an image [1, 3, {image_size}, {image_size}]: "
            f"{type(error).__name__}: {error}{_where(error)}"
        ) from error
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
    if not isinstance(shape, tuple) or len(shape) != 3 or shape[0] != 1 or shape[2] != width:
        raise ConfigError(
            f"'{name}' must map [B, 3, {image_size}, {image_size}] to [B, tokens, {width}]; "
            f"it returned {shape}."
        )


def _try(backbone: nn.Module, image_size: int) -> Any:
    """The output for one blank image, in evaluation mode; for a large tower only its shape.

    A large tower on the CPU computes without numbers, which saves seconds at each start. Code that
    looks at numbers cannot do that, and is then run for real.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters = list(backbone.parameters())
    some = parameters[0] if parameters else torch.zeros(())
    large = sum(p.numel() for p in parameters) > LARGE
    modes = {module: module.training for module in backbone.modules()}

    def forward() -> Any:
        size = (1, 3, image_size, image_size)
        return backbone(torch.zeros(size, device=some.device, dtype=some.dtype))

    backbone.eval()
    try:
        if large and all(p.device.type == "cpu" for p in parameters):
            try:
                with FakeTensorMode(allow_non_fake_inputs=True):
                    return forward()
            except Exception as error:  # whatever it was, the real forward has the last word
                logger.debug("shapes alone do not do, trying numbers: %s", error)
        return forward()
    finally:
        for module, mode in modes.items():
            module.training = mode


def _freeze_unused(backbone: nn.Module, cfg: VisionConfig) -> None:
    """Take the gradient from parameters that the tokens do not depend on."""
    wanted = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        total = _try(backbone, cfg.image_size).sum()
        if not total.requires_grad:
            return
        try:
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        except RuntimeError as error:  # reentrant checkpoints cannot be asked; DDP will tell
            logger.debug("which parameters of %s are used is not known: %s", cfg.name, error)
            return
    unused = [name for name, g in zip(wanted, gradients, strict=True) if g is None]
    for name in unused:
        wanted[name].requires_grad_(False)
    if unused:
        logger.info(
            "%s: the tokens do not depend on %d parameters (%s ...), which are frozen",
            cfg.name,
            len(unused),
            unused[0],
        )


def _where(error: Exception) -> str:
    """File and line where `error` arose, in the backbone's own code rather than in PyTorch's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_machinery(frame.filename)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _is_machinery(file: str) -> bool:
    standard = file.startswith(sysconfig.get_path("stdlib")) and "-packages" not in file
    standard |= file.startswith("<frozen")
    return standard or file == __file__ or file.startswith(str(Path(torch.__file__).parent))


def vision_fingerprint(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that name the backbone's weights: `fingerprint`."""
    return kept_fingerprint(module) or fingerprint(module.state_dict())
