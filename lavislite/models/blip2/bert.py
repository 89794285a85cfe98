"""BERT's weights as the Q-Former's start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lavislite.common.errors import UserError
from lavislite.common.logging import get_logger
from lavislite.common.tensors import load_tensors
from lavislite.models.base import check_state, copy_tensors
from lavislite.models.blip2.hub import BERT, find_bert
from lavislite.models.blip2.qformer import QFormer

logger = get_logger(__name__)

State = Mapping[str, Tensor]


def initialise_qformer(qformer: QFormer, spec: str) -> None:
    """Start the Q-Former from BERT, as `QFormerConfig.init` says.

    The FFN of the queries copies that of the text. Cross-attention and the row of ``[DEC]`` stay
    random.

    Raises:
        UserError: BERT was asked for by name and cannot be had, or the folder holds no weights.
        CheckpointError: BERT was asked for by name and has other sizes.
    """
    if spec == "none":
        return
    if spec not in ("auto", BERT):
        load_bert(qformer, load_tensors(spec), spec)
        return
    if spec == "auto" and not _is_bert_sized(qformer):
        return
    try:
        load_bert(qformer, load_tensors(_bert_weights()), BERT)
    except UserError as error:
        if spec == BERT:
            raise type(error)(f"model.qformer.init: {error}") from error
        logger.info("Q-Former: %s It starts from random weights.", error)


def _is_bert_sized(qformer: QFormer) -> bool:
    cfg = qformer.cfg
    sizes = (cfg.hidden_size, cfg.num_layers, cfg.intermediate_size or 4 * cfg.hidden_size)
    if qformer.text_layers and qformer.bert.embeddings.word_embeddings.num_embeddings != 30_523:
        return False
    return sizes == (768, 12, 3072)


def _bert_weights() -> Path:
    try:
        return find_bert("model.safetensors")
    except UserError as error:
        try:
            return find_bert("pytorch_model.bin")
        except UserError:
            raise error from None  # the file to get is the first


def load_bert(qformer: QFormer, state: State, origin: str) -> None:
    """Copy a BERT's embeddings, layers and LM head; the FFN of the queries gets that of the text.

    Raises:
        CheckpointError: BERT has other sizes; the tensor is named with both shapes.
    """
    own = qformer.state_dict(keep_vars=True)
    theirs = {_bert_name(name): tensor for name, tensor in state.items()}
    needed = [name for name in own if "crossattention" not in name]
    sources = {name: name.replace("_query.", ".") for name in needed}
    taken = {name: theirs[source] for name, source in sources.items() if source in theirs}
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        fits = name in taken and taken[name].shape[1:] == own[name].shape[1:]
        if fits and len(taken[name]) + 1 == len(own[name]):
            # [DEC] has no weights in BERT: its row keeps its fresh value.
            taken[name] = torch.cat([taken[name].to(own[name]), own[name].detach()[-1:]])
    fitted = {name: own[name] for name in needed}
    check_state(taken, fitted, origin, allow_missing=("cls.",))
    copy_tensors(taken, own)
    logger.info("Q-Former: started from %s", origin)


def _bert_name(name: str) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if name.startswith(("embeddings.", "encoder.")):  # a BertModel without its head
        return "bert." + name
    return name
