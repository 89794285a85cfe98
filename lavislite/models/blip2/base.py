"""The parts of a stage-1 model: image tower, Q-Former, heads; how they are built and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.schema import Bounds, check_bounds
from lavislite.models.base import BaseModel, backbone_layer_ids
from lavislite.models.blip2.bert import initialise_qformer
from lavislite.models.blip2.layers import KeyValue, QFormerConfig
from lavislite.models.blip2.qformer import QFormer
from lavislite.models.blip2.text import TextPacker, build_tokenizer, tokenizer_identity
from lavislite.models.blip2.weights import load_pretrained, run_tokenizer
from lavislite.models.vision.base import VisionConfig, build_vision, vision_fingerprint

TEMPERATURE_RANGE = (0.001, 0.5)  # of the contrast; it is learnt within


@dataclass
class Blip2Config:
    """Stage 1 of BLIP-2; the defaults are the published model.

    tokenizer: "auto", "bert-base-uncased", "from_data", or a folder with vocab.txt.
    max_txt_len: tokens per caption in training, with ``[CLS]`` and ``[SEP]``.
    negative_sharpness: below 1, hard negatives are drawn less from the very hardest.
    pretrained: a run folder, checkpoint folder, file or URL to start from.
    """

    arch: str = "blip2"
    model_type: str | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    num_query_tokens: int = 32
    embed_dim: int = 256
    max_txt_len: int = 32
    tokenizer: str = "auto"
    label_smoothing: float = 0.1
    temperature: float = 0.07
    negative_sharpness: float = 1.0
    ln_vision_eps: float = 1e-5
    pretrained: str | None = None

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        bounds: Bounds = {
            "num_query_tokens": (1, None),
            "embed_dim": (1, None),
            "max_txt_len": (3, None),  # [CLS], a token, [SEP]
            "label_smoothing": (0, 1),
            "temperature": TEMPERATURE_RANGE,
            "negative_sharpness": (0, None),
        }
        check_bounds("model", self, bounds)
        self.vision.check()
        self.qformer.check()
        if self.max_txt_len > self.qformer.max_positions:
            raise ConfigError(
                f"model.max_txt_len: {self.max_txt_len} tokens do not fit into "
                f"model.qformer.max_positions {self.qformer.max_positions}."
            )


class ImageEmbedding(NamedTuple):
    image_embeds: Tensor  # [B, T, C] tokens of the vision tower after ln_vision
    image_feats: Tensor  # [B, Q, E] of length 1


class Blip2Base(BaseModel):
    """Image tower and Q-Former with the projections and the matching head of stage 1.

    Args:
        vision: maps [B, 3, H, W] to [B, T, num_features]; frozen when none of its parameters wants
            a gradient.
        tokenizer: from `build_tokenizer`.
    """

    Config: ClassVar[type[Any]] = Blip2Config

    def __init__(self, cfg: Blip2Config, *, vision: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.pack = TextPacker(tokenizer, cfg.max_txt_len)
        width = cfg.qformer.hidden_size
        # The order of parameters is the original's; optimizer groups follow it.
        self.query_tokens = nn.Parameter(torch.empty(1, cfg.num_query_tokens, width))
        # One dimension, because FSDP2 rejects parameters without any.
        self.temp = nn.Parameter(torch.full((1,), cfg.temperature))
        self.visual_encoder = vision
        self.ln_vision = nn.LayerNorm(_features(vision), eps=cfg.ln_vision_eps)
        self.Qformer = QFormer(
            cfg.qformer, vocab_size=len(tokenizer), image_width=_features(vision)
        )
        self.vision_proj = nn.Linear(width, cfg.embed_dim)
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.itm_head = nn.Linear(width, 2)
        nn.init.normal_(self.query_tokens, std=0.02)
        self.vision_is_frozen = not any(p.requires_grad for p in vision.parameters())
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> Self:
        """Build tower, tokenizer and Q-Former, then load `cfg.pretrained`.

        Args:
            parts: ``vision`` (a module), ``tokenizer``, or ``captions`` (an iterable of texts, read
                only if a vocabulary has to be made) replace what would be built.
        """
        vision = parts["vision"] if parts.get("vision") is not None else build_vision(cfg.vision)
        tokenizer = parts.get("tokenizer")
        if tokenizer is None:
            spec = run_tokenizer(cfg.pretrained) if cfg.tokenizer == "auto" else None
            tokenizer = build_tokenizer(spec or cfg.tokenizer, parts.get("captions"))
        model = cls(cfg, vision=vision, tokenizer=tokenizer)
        if cfg.pretrained is None:
            initialise_qformer(model.Qformer, cfg.qformer.init)
        else:
            model.load_pretrained(cfg.pretrained)
        return model

    # ---- what the base class asks for

    def frozen_modules(self) -> Sequence[nn.Module]:
        return (self.visual_encoder,) if self.vision_is_frozen else ()

    def identity(self) -> dict[str, str]:
        known = {"tokenizer": tokenizer_identity(self.tokenizer)}
        if self.vision_is_frozen:
            known["vision"] = f"{self.cfg.vision.name}@{vision_fingerprint(self.visual_encoder)}"
        return known

    def layer_ids(self) -> tuple[dict[str, int], int]:
        return backbone_layer_ids(self.visual_encoder, "visual_encoder.")

    def load_pretrained(self, source: str | Path) -> None:
        """Start from a run folder, checkpoint folder, LAVIS checkpoint, file, URL or hf://org/name.

        Raises:
            CheckpointError: it belongs to another model; names and shapes say how.
        """
        load_pretrained(self, source)

    # ---- reading images and texts

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens [B, T, C] after ln_vision, which is computed in float32.

        Raises:
            UserError: another shape.
        """
        if images.ndim != 4:
            raise UserError(
                f"image: expected [B, 3, H, W], got {list(images.shape)}. A single picture needs "
                "image.unsqueeze(0)."
            )
        images = images.to(self.device, non_blocking=True)
        tokens = self._look_frozen(images) if self.vision_is_frozen else self.visual_encoder(images)
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            norm = self.ln_vision
            x = F.layer_norm(
                tokens.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
        return x.to(dtype)

    @torch.no_grad()
    def _look_frozen(self, images: Tensor) -> Tensor:
        """A frozen tower computes in the type it is stored in, whatever the run's autocast."""
        stored = next((p.dtype for p in self.visual_encoder.parameters()), images.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self.visual_encoder(images.to(stored))

    def project_image(self, queries: Tensor) -> Tensor:
        """[B, Q, d] -> [B, Q, E] of length 1, in float32"""
        return F.normalize(self.vision_proj(queries).float(), dim=-1)

    def project_text(self, rows: Tensor) -> Tensor:
        """[..., d] -> [..., E] of length 1, in float32"""
        return F.normalize(self.text_proj(rows).float(), dim=-1)

    def read_image(self, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """Image tokens [B, T, C] -> query rows [B, Q, d] and their keys and values."""
        return self.Qformer.encode_queries(self.query_tokens, self.Qformer.image_memory(tokens))


def _features(vision: nn.Module) -> int:
    return int(vision.num_features)  # type: ignore[arg-type]
