"""CLIP's names for the parts of its image encoder, and timm's for the same parts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lavislite.models.names import rename

CLIP_NAMES = (  # CLIP's name, timm's name
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("transformer.resblocks.{i}.ln_{n}.", "blocks.{i}.norm{n}."),
    ("transformer.resblocks.{i}.attn.in_proj_", "blocks.{i}.attn.qkv."),
    ("transformer.resblocks.{i}.attn.out_proj.", "blocks.{i}.attn.proj."),
    ("transformer.resblocks.{i}.mlp.c_fc.", "blocks.{i}.mlp.fc1."),
    ("transformer.resblocks.{i}.mlp.c_proj.", "blocks.{i}.mlp.fc2."),
)


def clip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's names -> timm's; the class token and the positions get a batch dimension."""
    ours = {rename(name, CLIP_NAMES) or name: tensor for name, tensor in state.items()}
    for name in ("cls_token", "pos_embed"):
        if name in ours:
            ours[name] = ours[name].reshape(1, -1, ours[name].shape[-1])
    return ours


def timm_to_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round."""
    theirs = {rename(name, CLIP_NAMES, back=True) or name: t for name, t in state.items()}
    for name, dims in (("class_embedding", (0, 1)), ("positional_embedding", (0,))):
        if name in theirs:
            theirs[name] = theirs[name].squeeze(dims)
    return theirs
