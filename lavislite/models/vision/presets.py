"""BLIP-2's two image encoders as presets of timm's networks, with LAVIS's features and names.

Both give the penultimate block without a final norm (BLIP-2, section 3.4), and both follow LAVIS
where the image size differs from the published one: bicubic position embeddings, no antialiasing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import CheckpointError
from lavislite.common.tensors import load_tensors
from lavislite.common.transfer import fetch
from lavislite.models.vision.positions import interpolate_positions
from lavislite.models.vision.timm import TimmBackbone

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

NATIVE_SIZE = 224
EVA = "eva_giant_patch14_clip_224.laion400m"
# Not the variant named "openai" alone: that one has another activation than OpenAI's weights.
CLIP = "vit_large_patch14_clip_quickgelu_224.openai"


@catalog.vision_backbones.register("eva_clip_g")
def eva_clip_g(weights: str | None = None, **options: Any) -> TimmBackbone:
    """EVA-CLIP ViT-g/14: 39 of 40 blocks, 1408 wide.

    Args:
        weights: null for timm's published ones, "none", or LAVIS's ``eva_vit_g.pth``.
    """
    return _preset(EVA, weights, align_corners=False, **options)


@catalog.vision_backbones.register("clip_L")
def clip_l(weights: str | None = None, **options: Any) -> TimmBackbone:
    """OpenAI's CLIP ViT-L/14: 23 of 24 blocks, 1024 wide.

    Args:
        weights: null for timm's published ones, "none", or LAVIS's ``clip_vit_L.pth``.
    """
    return _preset(CLIP, weights, align_corners=True, **options)


def _preset(
    name: str, weights: str | None, *, align_corners: bool, image_size: int = 224, **options: Any
) -> TimmBackbone:
    options = {"drop_blocks": 1, "final_norm": False, **options}
    at_home = weights is None and image_size == NATIVE_SIZE
    backbone = TimmBackbone(
        name, image_size=image_size, weights=None if at_home else "none", **options
    )
    if weights != "none" and not at_home:
        # Not timm but we fit the positions to another image size: it smooths them, LAVIS does not.
        state = (
            TimmBackbone(name, image_size=NATIVE_SIZE, **options).model.state_dict()
            if weights is None
            else load_tensors(fetch(weights))
        )
        load_tower(backbone, state, weights or name, align_corners=align_corners)
    backbone.image_mean, backbone.image_std = CLIP_MEAN, CLIP_STD
    return backbone


def load_tower(
    backbone: TimmBackbone, state: Any, origin: str | Path, *, align_corners: bool
) -> None:
    """Load a tower in timm's or LAVIS's names; blocks and heads that are not used may be in it.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    own = backbone.model.state_dict()
    theirs = lavis_tower(dict(state))
    lacking = [name for name in own if name not in theirs]
    if lacking:
        raise CheckpointError(
            f"{origin} is not the image encoder asked for: it lacks {len(lacking)} of {len(own)} "
            f"tensors, '{lacking[0]}' first."
        )
    theirs["pos_embed"] = interpolate_positions(
        theirs["pos_embed"], own["pos_embed"].shape[1], align_corners=align_corners
    )
    for name, tensor in own.items():
        if theirs[name].shape != tensor.shape:
            raise CheckpointError(
                f"{origin}: '{name}' has shape {list(theirs[name].shape)}, this tower needs "
                f"{list(tensor.shape)}."
            )
        tensor.copy_(theirs[name])


def lavis_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LAVIS's (and OpenAI's) names of a vision tower -> timm's; other names stay."""
    from lavislite.models.vision.names import clip_to_timm

    state = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    return clip_to_timm(state) if "class_embedding" in state else state
