"""The parts of a stage-1 model: the bridge, a text tokenizer, and the heads of its objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import Bounds, check_bounds
from lavislite.models.blip2.bridge import Blip2Bridge, BridgeConfig, build_tower
from lavislite.models.blip2.text import (
    TextBatch,
    TextPacker,
    TextPreparer,
    build_tokenizer,
    tokenizer_identity,
)
from lavislite.models.blip2.weights import run_tokenizer

OBJECTIVES = ("itc", "itm", "itg")
TEMPERATURE_RANGE = (0.001, 0.5)  # of the contrast; it is learnt within


@dataclass
class Blip2Config(BridgeConfig):
    """Stage 1 of BLIP-2; the defaults are the published model.

    tokenizer: "auto", "bert-base-uncased", "from_data", or a folder with vocab.txt.
    max_txt_len: tokens per caption in training, with ``[CLS]`` and ``[SEP]``.
    negative_sharpness: below 1, hard negatives are drawn less from the very hardest.
    objectives: of "itc" (contrast), "itm" (matching) and "itg" (captions), those that are trained.
    """

    embed_dim: int = 256
    tokenizer: str = "auto"
    label_smoothing: float = 0.1
    temperature: float = 0.07
    negative_sharpness: float = 1.0
    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES))

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        super().check()
        bounds: Bounds = {
            "embed_dim": (1, None),
            "max_txt_len": (3, None),  # [CLS], a token, [SEP]
            "label_smoothing": (0, 1),
            "temperature": TEMPERATURE_RANGE,
            "negative_sharpness": (0, None),
        }
        check_bounds("model", self, bounds)
        self._check_objectives()
        if self.max_txt_len > self.qformer.max_positions:
            raise ConfigError(
                f"model.max_txt_len: {self.max_txt_len} tokens do not fit into "
                f"model.qformer.max_positions {self.qformer.max_positions}."
            )

    def _check_objectives(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                near = did_you_mean(name, OBJECTIVES)
                raise ConfigError(
                    f"model.objectives: '{name}' is unknown.{near} Known: {', '.join(OBJECTIVES)}"
                )
        if not self.objectives:
            raise ConfigError(f"model.objectives: is empty; name some of {', '.join(OBJECTIVES)}")
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise ConfigError(
                "model.objectives: 'itm' needs 'itc', whose similarities choose the pairs that do "
                "not match. Add itc."
            )


class ImageEmbedding(NamedTuple):
    image_embeds: Tensor  # [B, T, C] tokens of the vision tower after ln_vision
    image_feats: Tensor  # [B, Q, E] of length 1


class Blip2Base(Blip2Bridge):
    """The bridge with the projections and the matching head of stage 1.

    Args:
        vision: see `Blip2Bridge`.
        tokenizer: from `build_tokenizer`.
    """

    Config: ClassVar[type[Any]] = Blip2Config

    def __init__(self, cfg: Blip2Config, *, vision: nn.Module, tokenizer: Any) -> None:
        super().__init__(cfg, vision=vision, vocab_size=len(tokenizer))
        self.tokenizer = tokenizer
        self.pack = TextPacker(tokenizer, cfg.max_txt_len)
        # One dimension, because FSDP2 rejects parameters without any.
        self.temp = nn.Parameter(torch.full((1,), cfg.temperature))
        width = cfg.qformer.hidden_size
        self.vision_proj = nn.Linear(width, cfg.embed_dim)
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.start()

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> Self:
        """Build tower, tokenizer and Q-Former, then load `cfg.pretrained`.

        Args:
            parts: ``vision`` (a module), ``tokenizer``, or ``captions`` (an iterable of texts, read
                only if a vocabulary has to be made) replace what would be built.
        """
        vision = parts["vision"] if parts.get("vision") is not None else build_tower(cfg)
        tokenizer = parts.get("tokenizer")
        if tokenizer is None:
            kept = run_tokenizer(cfg.pretrained) if cfg.tokenizer == "auto" else None
            tokenizer = build_tokenizer(kept or cfg.tokenizer, parts.get("captions"))
        model = cls(cfg, vision=vision, tokenizer=tokenizer)
        model.initialise()
        return model

    def identity(self) -> dict[str, str]:
        return {"tokenizer": tokenizer_identity(self.tokenizer), **super().identity()}

    # ---- texts

    def text_preparer(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return TextPreparer(self.pack)

    def pad_texts_to(self, multiple: int) -> None:
        self.pack.multiple = multiple

    def text_of(self, samples: Mapping[str, Any]) -> TextBatch:
        """``samples["text_tokens"]``, which a loading worker has made, else of ``text_input``."""
        known = samples.get("text_tokens")
        text = self.pack(samples["text_input"]) if known is None else known
        return text.to(self.device)

    # ---- heads

    def project_image(self, queries: Tensor) -> Tensor:
        """[B, Q, d] -> [B, Q, E] of length 1, in float32"""
        return F.normalize(self.vision_proj(queries).float(), dim=-1)

    def project_text(self, rows: Tensor) -> Tensor:
        """[..., d] -> [..., E] of length 1, in float32"""
        return F.normalize(self.text_proj(rows).float(), dim=-1)
