"""``hf:<hub id or folder>``: any vision model of the transformers library as image encoder."""

from __future__ import annotations

import inspect
import json
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

# Model types that AutoModel does not resolve to an image encoder: model type -> class.
TOWERS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "blip-2": "Blip2VisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
}
# These want images cut into patches beforehand, with masks and shapes beside them.
REFUSED = {"siglip2": "NaFlex", "siglip2_vision_model": "NaFlex"}


@catalog.vision_backbones.register("hf")
class HFBackbone(nn.Module):
    """The last hidden state of a transformers vision model; feature maps become tokens.

    Args:
        name: a folder with ``config.json``, or a hub id.
        weights: null for those beside the configuration, "none" for random ones, or a file, folder,
            URL or hub id of the same architecture.
        drop_blocks: delete so many of the last blocks.
        final_norm: keep the norm after the last block.
        revision: of the hub repository.
        trust_remote_code: run code from the repository; only if you know what it does.

    Raises:
        UserError: there is no such model, or it cannot be had.
        ConfigError: it is no image encoder, or cannot do what is asked of it.
    """

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        weights: str | None = None,
        drop_blocks: int = 0,
        final_norm: bool = True,
        grad_checkpointing: bool = False,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        where = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.model: Any = _load(name, weights, dtype, where)
        self.image_size = image_size
        self.image_mean, self.image_std = _statistics(name, revision)
        self.num_features = _width(self.model.config, name)
        if drop_blocks:
            _drop(self.model, drop_blocks, name)
        if not final_norm:
            _remove_norm(self.model, name)
        if grad_checkpointing:
            self.model.gradient_checkpointing_enable()
        self._resizes = (
            "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        )

    @property
    def blocks(self) -> Any:
        """The transformer blocks; empty when they are not found."""
        return _blocks(self.model) or []

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, num_features]"""
        native = getattr(self.model.config, "image_size", None)
        other_size = isinstance(native, int) and images.shape[-1] != native
        extra = {"interpolate_pos_encoding": True} if self._resizes and other_size else {}
        images = images.to(next(self.parameters()).dtype)
        x = self.model(pixel_values=images, **extra).last_hidden_state
        return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def _load(name: str, weights: str | None, dtype: torch.dtype, where: dict[str, Any]) -> Any:
    import transformers

    if not Path(name).is_dir():
        hub_trouble()
    try:
        config = transformers.AutoConfig.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load(name, error)) from error
    if config.model_type in REFUSED:
        raise ConfigError(
            f"hf:{name} is a {REFUSED[config.model_type]} model: it reads patches, masks and "
            "shapes instead of images. Choose a fixed-resolution variant."
        )
    cls: Any = transformers.AutoModel
    if config.model_type in TOWERS:
        cls = getattr(transformers, TOWERS[config.model_type])
        config = getattr(config, "vision_config", config)
    elif hasattr(config, "vision_config") and hasattr(config, "text_config"):
        raise ConfigError(
            f"hf:{name} is a '{config.model_type}' model of images and text; only the image "
            f"encoders of {', '.join(sorted(TOWERS))} are taken out of such models."
        )
    # A pooling head reads the tokens that we pass on; it would be work for nothing.
    extra = {"add_pooling_layer": False} if _has_pooler(cls, config) else {}
    if weights == "none":
        if cls is not transformers.AutoModel:
            return cls(config).to(dtype)
        return cls.from_config(
            config, dtype=dtype, trust_remote_code=where["trust_remote_code"], **extra
        )
    source, state = _source(name, weights)
    if source is None:  # AutoModel wants a name
        cls = _concrete(cls, config)
    try:
        model, report = cls.from_pretrained(
            source, config=config, state_dict=state, dtype=dtype, output_loading_info=True,
            **where, **extra,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_cannot_load(weights or name, error)) from error
    _check_complete(weights or name, report["missing_keys"])
    return model


def _source(name: str, weights: str | None) -> tuple[str | Path | None, Any]:
    """What ``from_pretrained`` shall read, and the tensors when they come from a single file."""
    if weights is None:
        return name, None
    hub_id = weights.count("/") == 1 and not Path(weights).suffix and not Path(weights).exists()
    if hub_id:
        hub_trouble()
        return weights, None
    path = fetch(weights)
    return (path, None) if path.is_dir() else (None, dict(load_tensors(path)))


def _check_complete(origin: str, missing: Any) -> None:
    """transformers fills gaps with random numbers; only heads that we do not use may be missing."""
    lacking = sorted(
        key
        for key in missing
        if not key.startswith(("pooler.", "head.")) and "mask_token" not in key
    )
    if lacking:
        raise CheckpointError(
            f"{origin} does not hold the weights of this image encoder: it lacks {len(lacking)} "
            f"tensors, '{lacking[0]}' first."
        )


def _has_pooler(cls: Any, config: Any) -> bool:
    real = _concrete(cls, config)
    return inspect.isclass(real) and "add_pooling_layer" in inspect.signature(real).parameters


def _concrete(cls: Any, config: Any) -> Any:
    """The class that AutoModel stands for."""
    from transformers import MODEL_MAPPING

    return MODEL_MAPPING.get(type(config), cls) if cls.__name__ == "AutoModel" else cls


def _cannot_load(name: str, error: Exception) -> str:
    folder = Path(name)
    if folder.parent.is_dir() and not folder.exists():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()])
    else:
        near = ""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"hf:{name} cannot be loaded: {first}{near}\n"
        "It must be a folder with config.json and weights, or a hub id that can be reached or is "
        "cached in HF_HOME."
    )


def _width(config: Any, name: str) -> int:
    for attribute in ("hidden_size", "num_features", "embed_dim"):
        value = getattr(config, attribute, None)
        if isinstance(value, int):
            return value
    widths = getattr(config, "hidden_sizes", None)
    if widths:
        return int(widths[-1])
    raise ConfigError(
        f"hf:{name}: the width of a '{config.model_type}' model is not in its configuration; "
        "wrap it in a backbone of your own."
    )


def _blocks(model: nn.Module) -> nn.ModuleList | None:
    """The longest list of modules that all are of one class: the transformer blocks, or stages."""
    lists = [
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) and len({type(x) for x in m}) == 1
    ]
    if _has_stages(model):  # the outermost list: the lists of blocks are inside it
        return next(iter(lists), None)
    return max(lists, key=len, default=None)


def _has_stages(model: Any) -> bool:
    """Whether the tokens become fewer and wider on the way, as in Swin and ConvNeXt."""
    return any(hasattr(model.config, name) for name in ("depths", "hidden_sizes"))


def _drop(model: nn.Module, count: int, name: str) -> None:
    blocks = _blocks(model)
    if _has_stages(model):
        raise ConfigError(
            f"model.vision.drop_blocks: hf:{name} is made of stages of different widths, not of "
            "equal blocks. Set drop_blocks to 0."
        )
    if blocks is None or not 0 <= count < len(blocks):
        have = 0 if blocks is None else len(blocks)
        raise ConfigError(
            f"model.vision.drop_blocks: hf:{name} has {have} blocks, cannot drop {count}."
        )
    del blocks[len(blocks) - count :]
    for attribute in ("num_hidden_layers", "num_layers"):
        if hasattr(model.config, attribute):
            setattr(model.config, attribute, len(blocks))


def _remove_norm(model: nn.Module, name: str) -> None:
    if type(model).__name__ == "CLIPVisionModel":
        return  # its last hidden state never passes the final norm
    for attribute in ("layernorm", "post_layernorm", "norm", "layer_norm", "rms_norm"):
        for owner in (model, getattr(model, "vision_model", None)):
            if isinstance(getattr(owner, attribute, None), nn.Module):
                setattr(owner, attribute, nn.Identity())
                return
    raise ConfigError(
        f"model.vision.final_norm: hf:{name} has no final norm that could be left out."
    )


def _statistics(
    name: str, revision: str | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation that the model was trained with; None when it does not say."""
    # transformers 5 writes the second file, with the image processor inside it.
    content = _read("preprocessor_config.json", name, revision)
    if "image_mean" not in content:
        content = _read("processor_config.json", name, revision).get("image_processor", {})
    mean, std = content.get("image_mean"), content.get("image_std")
    return (tuple(mean) if mean else None), (tuple(std) if std else None)


def _read(file: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file that lies beside the model; empty when there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return {} if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8")))
