"""CLIP's names for the parts of its image encoder, and timm's for the same parts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

CLIP_TO_TIMM = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
)
TIMM_TO_CLIP = (
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)


def clip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's names -> timm's; the class token and the positions get a batch dimension."""
    ours = {_rename(name, CLIP_TO_TIMM): tensor for name, tensor in state.items()}
    for name in ("cls_token", "pos_embed"):
        if name in ours:
            ours[name] = ours[name].reshape(1, -1, ours[name].shape[-1])
    return ours


def timm_to_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round."""
    theirs = {_rename(name, TIMM_TO_CLIP): tensor for name, tensor in state.items()}
    for name, dims in (("class_embedding", (0, 1)), ("positional_embedding", (0,))):
        if name in theirs:
            theirs[name] = theirs[name].squeeze(dims)
    return theirs


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name
