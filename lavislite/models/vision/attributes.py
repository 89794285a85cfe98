"""Trains the tiny ViT of the playground: each token says what object it lies on.

The labels are dense: a token inside an object's box names the shape, colour, size, texture and
place of that object, the others only that there is none. The tokens a Q-Former later reads
therefore carry all attributes, where the object is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import ConfigError, DataError
from lavislite.models.base import BaseModel
from lavislite.models.vision.tiny import TinyViT


@dataclass
class TinyViTAttributesConfig:
    arch: str = "tiny_vit_attributes"
    model_type: str | None = None
    image_size: int = 64
    width: int = 128
    depth: int = 2
    heads: int = 4
    # attribute -> number of values, in the order of the labels' columns
    attributes: dict[str, int] = field(
        default_factory=lambda: {"shape": 8, "colour": 8, "size": 2, "texture": 2, "position": 9}
    )


class TinyViTAttributes(BaseModel):
    """A `TinyViT` with one linear classifier per attribute on every token.

    Samples hold ``image`` [B, 3, H, W], ``object_boxes`` [B, N, 4] (left, top, right, bottom as
    fractions of the side) and ``object_labels`` [B, N, attributes], where -1 fills up scenes of
    fewer objects.
    """

    Config = TinyViTAttributesConfig

    def __init__(self, vit: TinyViT, attributes: dict[str, int]) -> None:
        super().__init__()
        if not attributes:
            raise ConfigError("model.attributes is empty: expected attribute names with sizes.")
        self.vit = vit
        self.attributes = dict(attributes)
        self.classifiers = nn.ModuleDict(
            {name: nn.Linear(vit.num_features, size) for name, size in self.attributes.items()}
        )
        self.presence = nn.Linear(vit.num_features, 1)

    @classmethod
    def from_config(cls, cfg: TinyViTAttributesConfig, **parts: Any) -> TinyViTAttributes:
        """`parts` may hold ``vit``; by default a fresh one of the configured size is made."""
        vit = (
            parts["vit"]
            if "vit" in parts
            else TinyViT(
                image_size=cfg.image_size,
                width=cfg.width,
                depth=cfg.depth,
                heads=cfg.heads,
                weights="none",
            )
        )
        return cls(vit, cfg.attributes)

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """``loss`` is the sum of ``loss_presence`` and a ``loss_<attribute>`` each."""
        tokens = self._tokens(samples)
        owner, labels = self._token_labels(samples, tokens.shape[1])
        covered = owner >= 0
        present = self.presence(tokens).squeeze(-1).float()
        losses = {"loss_presence": F.binary_cross_entropy_with_logits(present, covered.float())}
        on_object = tokens[covered]
        for column, (name, classifier) in enumerate(self.classifiers.items()):
            losses[f"loss_{name}"] = F.cross_entropy(
                classifier(on_object).float(), labels[covered][:, column]
            )
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    @torch.no_grad()
    def accuracy(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Per sample, [B] in 0..1: the fraction of its objects whose attribute is named right.

        An object's answer is the mean over its tokens. ``presence`` counts tokens instead, and
        ``scene`` asks for every attribute of every object.
        """
        tokens = self._tokens(samples)
        owner, _ = self._token_labels(samples, tokens.shape[1])
        labels = samples["object_labels"].to(tokens.device)
        real = labels[..., 0] >= 0  # [B, N]
        member = F.one_hot(owner + 1, real.shape[1] + 1)[..., 1:].to(tokens)  # [B, T, N]
        pooled = torch.einsum("btn,btc->bnc", member, tokens)
        pooled = pooled / member.sum(1).clamp(min=1)[..., None]
        right = {
            name: (classifier(pooled).argmax(-1) == labels[..., column]) & real
            for column, (name, classifier) in enumerate(self.classifiers.items())
        }
        count = real.sum(1)
        result = {name: value.sum(1) / count for name, value in right.items()}
        present = (self.presence(tokens).squeeze(-1) > 0) == (owner >= 0)
        result["presence"] = present.float().mean(1)
        everything = torch.stack(list(right.values())).all(0)
        result["scene"] = (everything.sum(1) == count).float()
        return result

    def _tokens(self, samples: dict[str, Any]) -> Tensor:
        return self.vit(samples["image"].to(self.device))

    def _token_labels(self, samples: dict[str, Any], count: int) -> tuple[Tensor, Tensor]:
        """The object each token lies on, [B, T] or -1, and its labels, [B, T, attributes]."""
        boxes = samples["object_boxes"].to(self.device)
        labels = samples["object_labels"].to(self.device)
        if labels.shape[-1] != len(self.attributes):
            raise DataError(
                f"object_labels has {labels.shape[-1]} columns, the model has "
                f"{len(self.attributes)} attributes: {', '.join(self.attributes)}."
            )
        inside = _inside(boxes, _token_centres(count).to(boxes)) & (labels[:, None, :, 0] >= 0)
        owner = torch.where(inside.any(-1), inside.int().argmax(-1), -1)
        index = owner.clamp(min=0)[..., None].expand(-1, -1, labels.shape[-1])
        return owner, labels.gather(1, index)


def _token_centres(count: int) -> Tensor:
    """Centres of a square grid of tokens, row by row, as fractions of the side: [count, 2]."""
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(
            f"attribute training needs a square grid of tokens, the ViT gives {count}."
        )
    line = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def _inside(boxes: Tensor, points: Tensor) -> Tensor:
    """[B, N, 4] boxes and [T, 2] points -> [B, T, N]"""
    low = points[None, :, None] >= boxes[:, None, :, :2]
    high = points[None, :, None] <= boxes[:, None, :, 2:]
    return (low & high).all(-1)
