"""``eva``: EVA's plain vision transformer in any size, for towers that come with a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.models.vision.presets import CLIP_MEAN, CLIP_STD, EVA
from lavislite.models.vision.timm import TimmBackbone


@catalog.vision_backbones.register("eva")
def eva(
    image_size: int = 224,
    width: int = 1408,
    depth: int = 39,
    heads: int = 16,
    inner_width: int = 6144,
    patch_size: int = 14,
    norm_eps: float = 1e-6,
    qkv_bias: bool = True,
    weights: str | None = None,
    **options: Any,
) -> TimmBackbone:
    """A tower of BLIP-2's kind, without final norm: [B, 3, H, W] -> [B, 1 + patches, width].

    Args:
        inner_width: of the feed-forward layers.
        norm_eps: of all norms.
        weights: "none", because a checkpoint brings them, or a file; nothing is published for it.
        options: as `TimmBackbone`'s.

    Raises:
        ConfigError: `weights` is null.
    """
    if weights is None:
        raise ConfigError(
            "model.vision.weights: 'eva' has no published weights. Set it to 'none' (a checkpoint "
            "brings them) or to a file; the published tower is 'eva_clip_g'."
        )
    backbone = TimmBackbone(
        EVA.partition(".")[0],
        image_size=image_size,
        weights=weights,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=(inner_width + 0.5) / width,  # timm rounds down
        patch_size=patch_size,
        qkv_bias=qkv_bias,
        **{"final_norm": False, **options},
    )
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norm_eps
    backbone.image_mean, backbone.image_std = CLIP_MEAN, CLIP_STD
    return backbone
