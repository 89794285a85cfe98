"""LAVIS's names of a BLIP-2 state, and ours.

They are the same, except for what LAVIS stores twice (the tied decoder), keeps as a buffer
(position ids), has without dimensions (temp), for the vision tower, which timm provides, and for
the language model, whose names LAVIS begins with its family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lavislite.models.vision.names import clip_to_timm, timm_to_clip

State = Mapping[str, Tensor]

VISION = "visual_encoder."
LANGUAGE = "language.model."
PROJECTION = "llm_proj."
FAMILIES = ("opt", "t5", "llm")
EMBEDDINGS = "Qformer.bert.embeddings."
WORDS = EMBEDDINGS + "word_embeddings.weight"
LM_BIAS = "Qformer.cls.predictions.bias"
DUPLICATES = {
    "Qformer.cls.predictions.decoder.weight": WORDS,
    "Qformer.cls.predictions.decoder.bias": LM_BIAS,
}
POSITION_IDS = EMBEDDINGS + "position_ids"
POSITIONS = EMBEDDINGS + "position_embeddings.weight"


def from_lavis(state: State) -> dict[str, Tensor]:
    """A state of LAVIS, stage 1 or 2, full or the trainable part, under our names."""
    ours = {_ours(n): t for n, t in state.items() if n not in DUPLICATES and n != POSITION_IDS}
    for duplicate, name in DUPLICATES.items():
        if duplicate in state and name not in ours:
            ours[name] = state[duplicate]
    if "temp" in ours:
        ours["temp"] = ours["temp"].reshape(1)
    return _tower(ours, clip_to_timm) if VISION + "class_embedding" in ours else ours


def to_lavis(state: State, family: str = "llm", positions: int = 512) -> dict[str, Tensor]:
    """Our state (full, or the trainable part) under LAVIS's names, duplicates included.

    Args:
        family: how LAVIS's model calls its language model: "opt", "t5" or "llm".
        positions: `max_positions` of a Q-Former without text.
    """
    inner = VISION + inner_prefix(state)
    begin = ((inner, VISION), (LANGUAGE, f"{family}_model."), (PROJECTION, f"{family}_proj."))
    theirs = {_replace(name, begin): tensor for name, tensor in state.items()}
    for duplicate, name in DUPLICATES.items():
        if name in theirs:
            theirs[duplicate] = theirs[name]
    if EMBEDDINGS + "LayerNorm.weight" in theirs:
        count = theirs[POSITIONS].shape[0] if POSITIONS in theirs else positions
        device = theirs[EMBEDDINGS + "LayerNorm.weight"].device
        theirs[POSITION_IDS] = torch.arange(count, device=device)[None]
    if "temp" in theirs:
        theirs["temp"] = theirs["temp"].reshape(())
    return _tower(theirs, timm_to_clip) if VISION + "norm_pre.weight" in theirs else theirs


def inner_prefix(own: State) -> str:
    """``"model."`` when the tower is wrapped (``visual_encoder.model.blocks...``), else ``""``."""
    for name in own:
        found = re.match(rf"{re.escape(VISION)}(.*?)pos_embed$", name)
        if found:
            return found.group(1)
    return ""


_FROM_LAVIS = tuple(
    pair
    for family in FAMILIES
    for pair in ((f"{family}_model.", LANGUAGE), (f"{family}_proj.", PROJECTION))
)


def _ours(name: str) -> str:
    return _replace(name, _FROM_LAVIS)


def _replace(name: str, beginnings: tuple[tuple[str, str], ...]) -> str:
    for old, new in beginnings:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _tower(state: State, rename: Callable[[State], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`state` with the names of the vision tower changed by `rename`."""
    tower = {n.removeprefix(VISION): t for n, t in state.items() if n.startswith(VISION)}
    rest = {n: t for n, t in state.items() if not n.startswith(VISION)}
    return {**rest, **{VISION + n: t for n, t in rename(tower).items()}}
