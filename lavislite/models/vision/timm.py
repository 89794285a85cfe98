"""``timm:<name>``: any of timm's networks as image encoder."""

from __future__ import annotations

import fnmatch
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.hub import hub_trouble
from lavislite.common.registry import did_you_mean
from lavislite.common.tensors import load_tensors
from lavislite.common.transfer import fetch


@catalog.vision_backbones.register("timm")
class TimmBackbone(nn.Module):
    """A timm network without its head; feature maps [B, C, H, W] become tokens [B, H*W, C].

    Args:
        name: as in ``timm.list_models()``, with or without a ``.tag``.
        weights: null for timm's published ones, "none" for random ones, or a file or URL.
        drop_blocks: leave out so many of the last blocks (BLIP-2 reads the penultimate: 1).
        final_norm: keep the norm after the last block.
        options: further arguments of ``timm.create_model``.

    Raises:
        ConfigError: no such network, or it cannot do what is asked of it.
        UserError: the weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        weights: str | None = None,
        drop_blocks: int = 0,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model: Any = create(name, image_size, drop_path_rate, weights is None, dtype, options)
        self.image_size = image_size
        config = _data_config(self.model)
        self.image_mean, self.image_std = tuple(config["mean"]), tuple(config["std"])
        if weights not in (None, "none"):
            load_weights(self.model, fetch(weights), name)
        if drop_blocks or not final_norm:
            prune(self.model, name, drop_blocks, final_norm)
        if grad_checkpointing:
            checkpoint_gradients(self.model, name)
        self.num_features = int(self.model.num_features)

    @property
    def blocks(self) -> Any:
        """The transformer blocks or the stages, for layer-wise learning rates; empty if unknown."""
        for attribute in ("blocks", "stages", "layers"):
            if hasattr(self.model, attribute):
                return getattr(self.model, attribute)
        return [
            getattr(self.model, n)
            for n in ("layer1", "layer2", "layer3", "layer4")
            if hasattr(self.model, n)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, num_features]"""
        x = self.model.forward_features(images.to(next(self.parameters()).dtype))
        if isinstance(x, Tensor) and x.ndim == 4:
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            x = x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)
        return x


def create(
    name: str,
    image_size: int,
    drop_path_rate: float,
    pretrained: bool,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> Any:
    """``timm.create_model`` at `image_size`, in `dtype` from the start, with readable errors."""
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(
            f"model.vision.name: timm has no model '{name}'."
            f"{_similar(name.split('.')[0], known)} "
            'All names: python -c "import timm; print(*timm.list_models())"'
        )
    architecture, _, tag = name.partition(".")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"model.vision.name: timm's '{architecture}' has no weights '{tag}'."
            f"{did_you_mean(tag, tags)} Known: {', '.join(tags) or 'none'}."
        )
    published = timm.get_pretrained_cfg(name)
    if pretrained and (published is None or not published.has_weights):
        raise ConfigError(
            f"model.vision: timm has no published weights for '{name}'. "
            "Set weights to 'none' or to a file."
        )
    arguments: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path_rate, **options}
    if published is not None and published.fixed_input_size:
        arguments.setdefault("img_size", image_size)
    if not drop_path_rate:
        del arguments["drop_path_rate"]
    repo = published.hf_hub_id if published is not None else None
    if pretrained and (trouble := hub_trouble()) and not _in_hub_cache(repo):
        raise _no_weights(name, trouble)  # before a billion random numbers are drawn
    try:
        with _default_dtype(dtype), _quiet_download():
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"model.vision.options: timm's '{name}': {error}") from error
    except OSError as error:
        raise _no_weights(name, _first_line(error)) from error


def _no_weights(name: str, reason: str) -> UserError:
    return UserError(
        f"The published weights of timm's '{name}' cannot be had: {reason}. "
        "They come from the Hugging Face hub and are cached in HF_HOME. Without a network set "
        "model.vision.weights to a local file, or to 'none' for random weights."
    )


def _in_hub_cache(repo: str | None) -> bool:
    """Something of the hub's `repo` has been downloaded; True when there is no such repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if repo is None:
        return True
    folder = Path(HF_HUB_CACHE) / f"models--{repo.partition('@')[0].replace('/', '--')}"
    return any(folder.glob("snapshots/*/*"))


def load_weights(model: Any, path: Path, name: str) -> None:
    """Load a file of weights; a classifier or an unused last block may be in it.

    Names of the original project and positions of another image size are translated where timm
    knows how.
    """
    state = load_tensors(path)
    own = model.state_dict()
    if any(key not in state or state[key].shape != own[key].shape for key in own):
        state = _translate(model, dict(state), path, name)
    missing = [key for key in own if key not in state]
    if missing:
        raise CheckpointError(
            f"{path} does not hold the weights of timm's '{name}': it lacks {len(missing)} of "
            f"{len(own)} tensors, '{missing[0]}' first.{did_you_mean(missing[0], state)}"
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: '{key}' has shape {list(state[key].shape)}, '{name}' needs "
                f"{list(tensor.shape)}."
            )
    # The tensors of the file are mapped, and stay so: copied, all would be in memory twice.
    kept = {key: _in_type_of(tensor, state[key]) for key, tensor in own.items()}
    model.load_state_dict(kept, assign=True)


def _in_type_of(own: Tensor, stored: Tensor) -> Tensor:
    """`stored` itself, or its numbers in `own` when that has another type."""
    return stored if stored.dtype == own.dtype else own.copy_(stored)


def _translate(model: nn.Module, state: dict[str, Any], path: Path, name: str) -> dict[str, Any]:
    """What timm itself would make of the tensors in `path`."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        return dict(translate(state, model))
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not hold the weights of timm's '{name}': {type(error).__name__}: {error}"
        ) from error


def checkpoint_gradients(model: Any, name: str) -> None:
    """Recompute activations in the backward pass."""
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ConfigError(
            f"model.vision.grad_checkpointing: timm's '{name}' cannot do that. Set it to false."
        ) from error


def prune(model: Any, name: str, drop_blocks: int, final_norm: bool) -> None:
    """Delete the last `drop_blocks` blocks, and the final norm unless it is wanted."""
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(model, "prune_intermediate_layers"):
        raise ConfigError(
            f"model.vision: drop_blocks and final_norm work on transformers; timm's '{name}' has "
            "no list of blocks. Set drop_blocks to 0 and final_norm to true."
        )
    if not 0 <= drop_blocks < len(blocks):
        raise ConfigError(
            f"model.vision.drop_blocks: '{name}' has {len(blocks)} blocks, cannot drop "
            f"{drop_blocks}."
        )
    model.prune_intermediate_layers(
        [len(blocks) - 1 - drop_blocks], prune_norm=not final_norm, prune_head=True
    )


def _data_config(model: nn.Module) -> dict[str, Any]:
    import timm

    return timm.data.resolve_model_data_config(model)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are made in `dtype`, so that a large frozen tower is never held in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet_download() -> Iterator[None]:
    """Without a network timm logs a traceback of its own before it raises; ours is enough."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _similar(name: str, known: list[str]) -> str:
    """Some of the `known` names that match a wildcard or hold `name`, else the nearest."""
    found = fnmatch.filter(known, name if "*" in name else f"*{name}*") if name else []
    if not found:
        return did_you_mean(name, known)
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f" Similar: {', '.join(found[:8])}{more}."
