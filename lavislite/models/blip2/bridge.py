"""What both stages share: an image tower, and the Q-Former that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import UserError
from lavislite.common.schema import check_bounds
from lavislite.models.base import BaseModel, backbone_layer_ids
from lavislite.models.blip2.bert import initialise_qformer
from lavislite.models.blip2.calls import require_keys
from lavislite.models.blip2.layers import KeyValue, QFormerConfig
from lavislite.models.blip2.qformer import ImageMemory, QFormer
from lavislite.models.blip2.weights import holds_tower, load_pretrained, look_at, sources
from lavislite.models.quantize import quantize
from lavislite.models.vision.base import VisionConfig, build_vision, vision_fingerprint


@dataclass
class BridgeConfig:
    """Options of every BLIP-2 model; the defaults are the published ones.

    max_txt_len: tokens per text in training, with the special ones.
    pretrained: a run folder, checkpoint folder, file or URL to start from, or a list of them: each
        in turn replaces what it holds.
    """

    arch: str = "blip2"
    model_type: str | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    num_query_tokens: int = 32
    max_txt_len: int = 32
    ln_vision_eps: float = 1e-5
    pretrained: Any = None  # str | list[str] | None, which OmegaConf cannot say

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        check_bounds("model", self, {"num_query_tokens": (1, None)})
        sources(self.pretrained)
        self.vision.check()
        self.qformer.check()


class Blip2Bridge(BaseModel):
    """Query tokens, image tower, ``ln_vision`` and Q-Former, in the original's names and order.

    A subclass adds its parts and then calls `start`.

    Args:
        vision: maps [B, 3, H, W] to [B, T, num_features]; frozen when none of its parameters wants
            a gradient.
        vocab_size, queries_only: see `QFormer`.
    """

    def __init__(
        self,
        cfg: BridgeConfig,
        *,
        vision: nn.Module,
        vocab_size: int | None,
        queries_only: bool = False,
    ) -> None:
        super().__init__()
        cfg.check()
        self.cfg: Any = cfg
        # The order of parameters is the original's; optimizer groups follow it.
        self.query_tokens = nn.Parameter(
            torch.empty(1, cfg.num_query_tokens, cfg.qformer.hidden_size)
        )
        width = int(vision.num_features)  # type: ignore[arg-type]
        self.visual_encoder = vision
        self.ln_vision = nn.LayerNorm(width, eps=cfg.ln_vision_eps)
        self.Qformer = QFormer(
            cfg.qformer, vocab_size=vocab_size, image_width=width, queries_only=queries_only
        )
        self.vision_is_frozen = is_frozen(vision)

    @classmethod
    def look(cls, cfg: Any) -> None:
        """Look, before anything is built, whether what `cfg` names is there and fits.

        Raises:
            UserError: it is not.
        """
        for source in sources(cfg.pretrained):
            look_at(source, (1, cfg.num_query_tokens, cfg.qformer.hidden_size))

    def start(self) -> None:
        """Random queries, and frozen parts in evaluation mode: the end of a constructor."""
        nn.init.normal_(self.query_tokens, std=0.02)
        self.train(self.training)

    def initialise(self) -> None:
        """The weights to begin with: those of `cfg.pretrained`, else BERT's."""
        if sources(self.cfg.pretrained):
            self.load_pretrained(self.cfg.pretrained)
        else:
            initialise_qformer(self.Qformer, self.cfg.qformer.init)
        self.quantize()

    def quantize(self) -> None:
        """Frozen towers as their `quantization` says; no weights can be loaded into them then."""
        tower, kind = self.visual_encoder, self.cfg.vision.quantization
        if kind is not None:
            key = "model.vision.quantization"
            quantize(tower, kind, key, fingerprint=vision_fingerprint(tower))

    # ---- what the base class asks for

    def frozen_modules(self) -> Sequence[nn.Module]:
        return (self.visual_encoder,) if self.vision_is_frozen else ()

    def towers(self) -> Sequence[nn.Module]:
        return (self.visual_encoder,)

    def recompute_activations(self, *, offload: bool) -> None:
        self.Qformer.recompute = "offload" if offload else "recompute"

    def layers_to_compile(self) -> Sequence[nn.Module]:
        return self.Qformer.layers

    def graphable_towers(self) -> Sequence[nn.Module]:
        return (self.visual_encoder,) if self.vision_is_frozen else ()

    def identity(self) -> dict[str, str]:
        if not self.vision_is_frozen:
            return {}
        return {"vision": f"{self.cfg.vision.name}@{vision_fingerprint(self.visual_encoder)}"}

    def layer_ids(self) -> tuple[dict[str, int], int]:
        return backbone_layer_ids(self.visual_encoder, "visual_encoder.")

    def load_pretrained(self, source: str | Path | Sequence[str]) -> None:
        """Start from a run folder, checkpoint folder, LAVIS checkpoint, file, URL or hf://org/name.

        Of several each in turn replaces what it holds; together they must hold everything.

        Raises:
            CheckpointError: it belongs to another model; names and shapes say how.
        """
        load_pretrained(self, source)

    # ---- reading images

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens [B, T, C] after ln_vision, which is computed in float32.

        Raises:
            UserError: another shape.
        """
        return self._normed(self.tower_features(images), self.ln_vision.weight, self.ln_vision.bias)

    def tower_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> what the vision tower says of them [B, T, C], before ln_vision.

        Raises:
            UserError: another shape.
        """
        if images.ndim != 4:
            raise UserError(
                f"image: expected [B, 3, H, W], got {list(images.shape)}. A single picture needs "
                "image.unsqueeze(0)."
            )
        images = images.to(self.device, non_blocking=True)
        return self._look_frozen(images) if self.vision_is_frozen else self.visual_encoder(images)

    def tokens_of(self, features: Tensor) -> Tensor:
        """Tower features [B, T, C] -> the image tokens that `memory_of` takes.

        Computed in float32, returned in the type that the next layer computes in. Where a gradient
        is wanted they still lack scale and shift of ln_vision: those go into the weights of what
        reads them, so that with a frozen tower no gradient is made for the tokens of images.
        """
        if torch.is_grad_enabled():
            return self._normed(features)
        return self._normed(features, self.ln_vision.weight, self.ln_vision.bias)

    def _normed(
        self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        kind, norm = self.device.type, self.ln_vision
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            x = F.layer_norm(features.float(), norm.normalized_shape, weight, bias, norm.eps)
        return x.to(dtype)

    def memory_of(self, tokens: Tensor) -> ImageMemory:
        """What the Q-Former reads of images, from the tokens [B, T, C] of `tokens_of`."""
        lacks = self.ln_vision if torch.is_grad_enabled() else None
        return self.Qformer.image_memory(tokens, lacks)

    def features_of(self, samples: Mapping[str, Any]) -> Tensor:
        """Tower features [B, T, C]: ``samples["image_features"]``, else those of ``image``.

        Raises:
            UserError: the samples hold neither, or another shape.
        """
        known = samples.get("image_features")
        if known is None:
            require_keys(samples, ("image",), type(self).__name__)
            return self.tower_features(samples["image"])
        width = self.ln_vision.normalized_shape[0]
        if known.ndim != 3 or known.shape[-1] != width:
            raise UserError(
                f"image_features: expected [B, tokens, {width}], got {list(known.shape)}."
            )
        return known.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _look_frozen(self, images: Tensor) -> Tensor:
        """A frozen tower computes in the type it is stored in, whatever the run's autocast."""
        stored = next((p.dtype for p in self.visual_encoder.parameters()), images.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self.visual_encoder(images.to(stored))

    def read_image(self, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """Image tokens [B, T, C] -> query rows [B, Q, d] and their keys and values."""
        return self.Qformer.encode_queries(self.query_tokens, self.Qformer.image_memory(tokens))


def build_tower(cfg: BridgeConfig) -> nn.Module:
    """The vision tower of `cfg`; weights that `cfg.pretrained` brings are not fetched twice."""
    vision = cfg.vision
    if vision.weights is None and any(map(holds_tower, sources(cfg.pretrained))):
        vision = replace(vision, weights="none")
    return build_vision(vision)


def is_frozen(module: nn.Module) -> bool:
    """None of its parameters wants a gradient."""
    return not any(parameter.requires_grad for parameter in module.parameters())
