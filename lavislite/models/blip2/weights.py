"""Weights from elsewhere: LAVIS checkpoints, our own runs, BERT for a fresh Q-Former.

Our names are LAVIS's, except for what LAVIS stores twice (the tied decoder), keeps as a buffer
(position ids), has without dimensions (temp), and the tower `clip_L`, which comes from timm here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import CheckpointError, UserError
from lavislite.common.io import fetch, load_tensors, read_json
from lavislite.common.logging import get_logger
from lavislite.models.base import BaseModel, check_state, copy_tensors
from lavislite.models.blip2.qformer import QFormer
from lavislite.models.blip2.text import BERT, find_bert

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

# clip_L: LAVIS -> timm
CLIP_NAMES = (
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


class VisionModel(Protocol):
    visual_encoder: nn.Module


# ---- names


def from_lavis(state: State) -> dict[str, Tensor]:
    """A stage-1 state of LAVIS (full, or the trainable part) under our names."""
    ours = {name: t for name, t in state.items() if name not in DUPLICATES and name != POSITION_IDS}
    for duplicate, name in DUPLICATES.items():
        if duplicate in state and name not in ours:
            ours[name] = state[duplicate]
    if "temp" in ours:
        ours["temp"] = ours["temp"].reshape(1)
    if VISION + "class_embedding" in ours:
        ours = {_rename_vision(name, CLIP_NAMES): t for name, t in ours.items()}
        for name in ("cls_token", "pos_embed"):
            ours[VISION + name] = ours[VISION + name].reshape(1, -1, ours[VISION + name].shape[-1])
    return ours


def to_lavis(state: State, *, clip: bool = False) -> dict[str, Tensor]:
    """Our stage-1 state under LAVIS's names, duplicates included.

    Args:
        clip: the tower is LAVIS's `clip_L`, whose names differ from timm's.
    """
    theirs = dict(state)
    for duplicate, name in DUPLICATES.items():
        if name in theirs:
            theirs[duplicate] = theirs[name]
    if POSITIONS in theirs:
        count, device = theirs[POSITIONS].shape[0], theirs[POSITIONS].device
        theirs[POSITION_IDS] = torch.arange(count, device=device)[None]
    if "temp" in theirs:
        theirs["temp"] = theirs["temp"].reshape(())
    if clip:
        theirs = {_rename_vision(name, TIMM_TO_CLIP): t for name, t in theirs.items()}
        for name, dims in (("class_embedding", (0, 1)), ("positional_embedding", (0,))):
            if VISION + name in theirs:
                theirs[VISION + name] = theirs[VISION + name].squeeze(dims)
    return theirs


def _rename_vision(name: str, table: tuple[tuple[str, str], ...]) -> str:
    if not name.startswith(VISION):
        return name
    inner = name.removeprefix(VISION)
    for pattern, replacement in table:
        inner, count = re.subn(pattern, replacement, inner)
        if count:
            break
    return VISION + inner


# ---- positions


def interpolate_positions(
    positions: Tensor, tokens: int, *, prefix: int = 1, align_corners: bool = False
) -> Tensor:
    """Position embeddings [1, prefix + n*n, C] -> [1, tokens, C], bicubic, without antialiasing.

    Args:
        prefix: leading tokens that are no patches; they are kept.
        align_corners: False as LAVIS does for EVA, True as it does for CLIP.

    Raises:
        CheckpointError: either number of patches is not a square.
    """
    if positions.shape[1] == tokens:
        return positions
    old, new = math.isqrt(positions.shape[1] - prefix), math.isqrt(tokens - prefix)
    if old * old != positions.shape[1] - prefix or new * new != tokens - prefix:
        raise CheckpointError(
            f"Cannot fit {positions.shape[1]} position embeddings to {tokens}: "
            "both must be squares of patches."
        )
    grid = positions[:, prefix:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], patches], 1)


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

    The frozen tower may be absent from it. A tower inside is loaded even when it is frozen here, its
    position embeddings fitted to this image size.

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
    """The checkpoint a path means: of a run folder the best, else the last; others as they are."""
    for pointer in ("checkpoint_best", "last"):
        if (path / "checkpoints" / pointer).exists():
            return (path / "checkpoints" / pointer).resolve()
    return path


def run_tokenizer(source: str | None) -> str | None:
    """Folder of the vocabulary that a run or checkpoint folder carries, if it does."""
    if source is None or not Path(source).is_dir():
        return None
    path = checkpoint_in(Path(source))
    for folder in (path, Path(source), path.parent.parent):
        if (folder / "tokenizer" / "vocab.txt").exists():
            return str(folder / "tokenizer")
    return None


def _inner_prefix(own: State) -> str:
    """``"model."`` when the tower is wrapped in one (``visual_encoder.model.blocks...``), else ``""``."""
    for name in own:
        found = re.match(rf"{re.escape(VISION)}(.*?)pos_embed$", name)
        if found:
            return found.group(1)
    return ""


def _nest(name: str, inner: str) -> str:
    if name.startswith(VISION) and not name.startswith(VISION + inner):
        return VISION + inner + name.removeprefix(VISION)
    return name


# ---- BERT


def initialise_qformer(qformer: QFormer, spec: str) -> None:
    """Start the Q-Former from BERT, as `QFormerConfig.init` says; the query FFN copies the text FFN.

    Cross-attention and the row of ``[DEC]`` stay random.

    Raises:
        UserError: BERT was asked for by name and cannot be had, or the folder holds no weights.
        CheckpointError: BERT was asked for by name and has other sizes.
    """
    if spec == "none":
        return
    if spec not in ("auto", BERT):
        return load_bert(qformer, load_tensors(spec), spec)
    if spec == "auto" and not _is_bert_sized(qformer):
        return None
    try:
        load_bert(qformer, load_tensors(_bert_weights()), BERT)
    except UserError as error:
        if spec == BERT:
            raise
        logger.info("Q-Former: %s It starts from random weights.", error)
    return None


def _is_bert_sized(qformer: QFormer) -> bool:
    cfg = qformer.cfg
    sizes = (cfg.hidden_size, cfg.num_layers, cfg.intermediate_size or 4 * cfg.hidden_size)
    rows = qformer.bert.embeddings.word_embeddings.num_embeddings
    return (*sizes, rows) == (768, 12, 3072, 30_523)


def _bert_weights() -> Path:
    try:
        return find_bert("model.safetensors")
    except UserError:
        return find_bert("pytorch_model.bin")


def load_bert(qformer: QFormer, state: State, origin: str) -> None:
    """Copy a BERT's embeddings, layers and LM head into the Q-Former's text side.

    Raises:
        CheckpointError: BERT has other sizes; the tensor is named with both shapes.
    """
    own = qformer.state_dict(keep_vars=True)
    theirs = {_bert_name(name): tensor for name, tensor in state.items()}
    needed = [n for n in own if "crossattention" not in n and "_query." not in n]
    taken = {name: theirs[name] for name in needed if name in theirs}
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        if name in taken and taken[name].shape[0] + 1 == own[name].shape[0]:
            # [DEC] has no weights in BERT: its row keeps its fresh value.
            taken[name] = torch.cat([taken[name].to(own[name]), own[name].detach()[-1:]])
    fitted = {name: own[name] for name in needed}
    check_state(taken, fitted, origin, allow_missing=("cls.",))
    copy_tensors(taken, own)
    qformer.copy_text_ffn()
    logger.info("Q-Former: started from %s", origin)


def _bert_name(name: str) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if name.startswith(("embeddings.", "encoder.")):  # a BertModel without its head
        return "bert." + name
    return name
