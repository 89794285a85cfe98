"""The tensors of BLIP-2 under Hugging Face's names and under ours: both ways, to the last bit.

Two things are more than a name. Hugging Face keeps one bias for query, key and value, EVA's tower
has none for the key: the third in the middle is zeros on the way out and is dropped on the way
in, where it cannot matter (a constant added to all scores of a query leaves the softmax as it is).
And Hugging Face has no place for the Q-Former's own language head and the temperature of stage 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lavislite.common.errors import CheckpointError
from lavislite.common.registry import did_you_mean
from lavislite.models.names import Table, rename

State = Mapping[str, Tensor]

OUR_TOWER, THEIR_TOWER = "visual_encoder.", "vision_model."
OUR_LM, THEIR_LM = "language.model.", "language_model."
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"

TOWER: Table = (  # below visual_encoder. and vision_model.
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.{i}.norm{n}.", "encoder.layers.{i}.layer_norm{n}."),
    ("blocks.{i}.attn.qkv.", "encoder.layers.{i}.self_attn.qkv."),
    ("blocks.{i}.attn.proj.", "encoder.layers.{i}.self_attn.projection."),
    ("blocks.{i}.mlp.fc{n}.", "encoder.layers.{i}.mlp.fc{n}."),
)
_OUR_LAYER, _THEIR_LAYER = "Qformer.bert.encoder.layer.{i}.", "qformer.encoder.layer.{i}."
BRIDGE: Table = (
    ("query_tokens", "query_tokens"),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    (_OUR_LAYER + "attention.self.", _THEIR_LAYER + "attention.attention."),
    (_OUR_LAYER + "attention.output.", _THEIR_LAYER + "attention.output."),
    (_OUR_LAYER + "crossattention.self.", _THEIR_LAYER + "crossattention.attention."),
    (_OUR_LAYER + "crossattention.output.", _THEIR_LAYER + "crossattention.output."),
    (_OUR_LAYER + "intermediate_query.", _THEIR_LAYER + "intermediate_query."),
    (_OUR_LAYER + "output_query.", _THEIR_LAYER + "output_query."),
)
RETRIEVAL: Table = (  # what only image-text retrieval has
    ("Qformer.bert.embeddings.word_embeddings.", "embeddings.word_embeddings."),
    ("Qformer.bert.embeddings.position_embeddings.", "embeddings.position_embeddings."),
    (_OUR_LAYER + "intermediate.", _THEIR_LAYER + "intermediate."),
    (_OUR_LAYER + "output.", _THEIR_LAYER + "output."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    ("itm_head.", "itm_head."),
)
WRITING: Table = (  # what only conditional generation has
    ("llm_proj.", "language_projection."),
    (OUR_LM, THEIR_LM),
)
HOMELESS = ("Qformer.cls.", "temp")  # of stage 1: Hugging Face has no place for them


class Converted(NamedTuple):
    state: dict[str, Tensor]
    left_out: dict[str, Tensor]  # what the other side has no place for, under its old names


def is_stage1(names: Iterable[str]) -> bool:
    """Whether a state under our names is that of a stage-1 model."""
    return WORDS in set(names)


def to_hf(state: State, inner: str = "") -> Converted:
    """Our full state -> `Blip2ForImageTextRetrieval` (stage 1) or `Blip2ForConditionalGeneration`.

    Args:
        inner: what stands between ``visual_encoder.`` and timm's names: "model." or nothing.

    Raises:
        CheckpointError: a tensor has no place there.
    """
    table = [*BRIDGE, *(RETRIEVAL if is_stage1(state) else WRITING)]
    ours = _fuse_biases(state)
    theirs, left_out = {}, {}
    for name, tensor in ours.items():
        if name.startswith(HOMELESS):
            left_out[name] = tensor
            continue
        if name.startswith(OUR_TOWER):
            inside = rename(name.removeprefix(OUR_TOWER + inner), TOWER)
            renamed = None if inside is None else THEIR_TOWER + inside
        else:
            renamed = rename(name, table)
        if renamed is None:
            raise CheckpointError(
                f"'{name}' has no place in Hugging Face's BLIP-2, so the model cannot be exported."
            )
        theirs[renamed] = tensor
    return Converted(theirs, left_out)


def from_hf(state: State, *, fused_bias: bool = False) -> Converted:
    """The state of either class of Hugging Face -> our names, the tower's as timm has them.

    Args:
        fused_bias: the tower is one with a bias of the keys, as timm's plain ViTs are.

    Raises:
        CheckpointError: a name is not one of BLIP-2's.
    """
    stage1 = "embeddings.word_embeddings.weight" in state
    table = [*BRIDGE, *(RETRIEVAL if stage1 else WRITING)]
    ours, left_out = {}, {}
    for name, tensor in state.items():
        if name.startswith(THEIR_TOWER) and ".post_layernorm." not in name:
            inside = rename(name.removeprefix(THEIR_TOWER), TOWER, back=True)
            renamed = None if inside is None else OUR_TOWER + inside
        else:
            renamed = rename(name, table, back=True)
        if renamed is not None:
            ours[renamed] = tensor
        elif name.endswith(".position_ids") or (
            not stage1 and rename(name, RETRIEVAL, back=True) is not None
        ):
            left_out[name] = tensor  # old files of captioners carry the text side
        else:
            raise CheckpointError(
                f"'{name}' is no tensor of Hugging Face's BLIP-2."
                f"{did_you_mean(name, [theirs for _, theirs in table])}"
            )
    return Converted(ours if fused_bias else _split_biases(ours), left_out)


def _fuse_biases(state: State) -> dict[str, Tensor]:
    """``attn.q_bias`` and ``attn.v_bias`` -> ``attn.qkv.bias``, zeros in the middle."""
    fused = {}
    for name, tensor in state.items():
        if not name.startswith(OUR_TOWER):
            fused[name] = tensor
        elif name.endswith(".attn.q_bias"):
            v_bias = state[name.removesuffix("q_bias") + "v_bias"]
            both = [tensor, torch.zeros_like(tensor), v_bias]
            fused[name.removesuffix("q_bias") + "qkv.bias"] = torch.cat(both)
        elif not name.endswith((".attn.v_bias", ".attn.k_bias")):
            fused[name] = tensor
    return fused


def _split_biases(state: State) -> dict[str, Tensor]:
    """The other way round; the bias of the keys is dropped."""
    split = {}
    for name, tensor in state.items():
        if name.startswith(OUR_TOWER) and name.endswith(".attn.qkv.bias"):
            q_bias, _, v_bias = tensor.chunk(3)
            split[name.removesuffix("qkv.bias") + "q_bias"] = q_bias
            split[name.removesuffix("qkv.bias") + "v_bias"] = v_bias
        else:
            split[name] = tensor
    return split
