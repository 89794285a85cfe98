"""Weights from elsewhere: LAVIS checkpoints and our own runs.

Our names are LAVIS's, except for what LAVIS stores twice (the tied decoder), keeps as a buffer
(position ids), has without dimensions (temp), and for the vision tower, which timm provides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from lavislite.common.io import fetch, load_tensors, read_json, require_path
from lavislite.common.logging import get_logger
from lavislite.models.base import BaseModel, check_state, copy_tensors
from lavislite.models.vision.names import clip_to_timm, timm_to_clip
from lavislite.models.vision.positions import interpolate_positions

logger = get_logger(__name__)

State = Mapping[str, Tensor]

VISION = "visual_encoder."
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
LM_BIAS = "Qformer.cls.predictions.bias"
DUPLICATES = {
    "Qformer.cls.predictions.decoder.weight": WORDS,
    "Qformer.cls.predictions.decoder.bias": LM_BIAS,
}
POSITION_IDS = "Qformer.bert.embeddings.position_ids"
POSITIONS = "Qformer.bert.embeddings.position_embeddings.weight"


# ---- names


def from_lavis(state: State) -> dict[str, Tensor]:
    """A stage-1 state of LAVIS (full, or the trainable part) under our names."""
    ours = {name: t for name, t in state.items() if name not in DUPLICATES and name != POSITION_IDS}
    for duplicate, name in DUPLICATES.items():
        if duplicate in state and name not in ours:
            ours[name] = state[duplicate]
    if "temp" in ours:
        ours["temp"] = ours["temp"].reshape(1)
    return _tower(ours, clip_to_timm) if VISION + "class_embedding" in ours else ours


def to_lavis(state: State) -> dict[str, Tensor]:
    """Our stage-1 state (full, or the trainable part) under LAVIS's names, duplicates included."""
    inner = VISION + _inner_prefix(state)
    theirs = {
        VISION + n.removeprefix(inner) if n.startswith(inner) else n: t for n, t in state.items()
    }
    for duplicate, name in DUPLICATES.items():
        if name in theirs:
            theirs[duplicate] = theirs[name]
    if POSITIONS in theirs:
        count, device = theirs[POSITIONS].shape[0], theirs[POSITIONS].device
        theirs[POSITION_IDS] = torch.arange(count, device=device)[None]
    if "temp" in theirs:
        theirs["temp"] = theirs["temp"].reshape(())
    return _tower(theirs, timm_to_clip) if VISION + "norm_pre.weight" in theirs else theirs


def _tower(state: State, rename: Callable[[State], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`state` with the names of the vision tower changed by `rename`."""
    tower = {n.removeprefix(VISION): t for n, t in state.items() if n.startswith(VISION)}
    rest = {n: t for n, t in state.items() if not n.startswith(VISION)}
    return {**rest, **{VISION + n: t for n, t in rename(tower).items()}}


def _fit_positions(state: dict[str, Tensor], own: State, align_corners: bool) -> None:
    for name, tensor in state.items():
        fits = name.startswith(VISION) and name.endswith("pos_embed") and name in own
        if fits and tensor.ndim == 3 and tensor.shape[1] != own[name].shape[1]:
            logger.info("%s: fitted from %s to %s", name, list(tensor.shape), list(own[name].shape))
            state[name] = interpolate_positions(
                tensor, own[name].shape[1], align_corners=align_corners
            )


# ---- loading


def load_pretrained(model: BaseModel, source: str | Path) -> None:
    """Load a LAVIS checkpoint, a file of weights, or one of our runs into `model`.

    The frozen tower may be absent from it. A tower inside is loaded even when it is frozen here,
    its position embeddings fitted to this image size.

    Raises:
        CheckpointError: the checkpoint belongs to another model; names and shapes say how.
    """
    path = checkpoint_in(fetch(source))
    if (path / "meta.json").is_file():
        model.check_identity(read_json(path / "meta.json")["identity"])
    load_state(model, load_tensors(path), str(source))


def load_state(model: BaseModel, state: State, origin: str) -> None:
    """`load_pretrained` for tensors at hand.

    Raises:
        CheckpointError: see there.
    """
    is_clip = VISION + "positional_embedding" in state
    ours = from_lavis(state)
    own = model.state_dict(keep_vars=True)
    inner = _inner_prefix(own)
    if inner:
        ours = {_nest(name, inner): tensor for name, tensor in ours.items()}
    _fit_positions(ours, own, align_corners=is_clip)
    check_state(ours, own, origin, allow_missing=(VISION,))
    copy_tensors(ours, own)


def checkpoint_in(path: Path) -> Path:
    """The checkpoint a path means: of a run folder the best, else the last; others as they are.

    The weights inside a checkpoint folder mean the folder, which knows what they belong to.
    """
    for pointer in ("checkpoint_best", "last"):
        if (path / "checkpoints" / pointer).exists():
            return (path / "checkpoints" / pointer).resolve()
    if path.is_file() and (path.parent / "meta.json").is_file():
        return path.parent.resolve()
    return path


def run_tokenizer(source: str | None) -> str | None:
    """Folder of the vocabulary that a run or checkpoint folder carries, if it does.

    Raises:
        UserError: `source` is a local path that does not exist.
    """
    if source is None or len(urlsplit(source).scheme) > 1:  # a URL; one letter is a drive
        return None
    found = require_path(source, "checkpoint")
    path = checkpoint_in(found)
    for folder in (path, found, path.parent.parent):
        if (folder / "tokenizer" / "vocab.txt").exists():
            return str(folder / "tokenizer")
    return None


def _inner_prefix(own: State) -> str:
    """``"model."`` when the tower is wrapped (``visual_encoder.model.blocks...``), else ``""``."""
    for name in own:
        found = re.match(rf"{re.escape(VISION)}(.*?)pos_embed$", name)
        if found:
            return found.group(1)
    return ""


def _nest(name: str, inner: str) -> str:
    if name.startswith(VISION) and not name.startswith(VISION + inner):
        return VISION + inner + name.removeprefix(VISION)
    return name
