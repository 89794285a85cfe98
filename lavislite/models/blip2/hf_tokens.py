"""Vocabularies: a row for the token ``<image>``, and BERT's as a file."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lavislite.common.errors import CheckpointError, UserError
from lavislite.models.blip2.text import BEGIN

IMAGE_TOKEN = "<image>"


def with_image_token(tokenizer: Any, rows: int, padding_side: str) -> tuple[Any, int]:
    """A copy of `tokenizer` that knows ``<image>`` and pads on `padding_side`, and the token's id.

    Args:
        rows: of the language model's embedding; the id is at most `rows`, which asks for one more.

    Raises:
        UserError: the tokenizer has more tokens than the language model has rows.
    """
    known = copy.deepcopy(tokenizer)
    if IMAGE_TOKEN not in known.get_vocab():
        from transformers import AddedToken

        known.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    known.padding_side = padding_side
    known.init_kwargs["padding_side"] = padding_side  # what is set later is not saved
    number = int(known.convert_tokens_to_ids(IMAGE_TOKEN))
    if number > rows:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model {rows} rows: they do "
            "not belong together, and there is no id for <image>."
        )
    return known, number


def grow_by_one(state: dict[str, Tensor], lm: Any, prefix: str, tokenizer: Any) -> None:
    """Give the vocabulary in `state` one more row, a copy of a rare token's.

    Only one, because every row of the output changes the normalisation of all probabilities; and
    a copy of a rare one, because a row of zeros wins wherever all others are negative.

    Args:
        state: with the parameters of `lm` under `prefix`; changed in place, `lm` is not.
    """
    source = rare_token(tokenizer, lm.get_input_embeddings().weight.shape[0])
    head = lm.get_output_embeddings()
    vocabulary = [lm.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        grows = any(parameter is table for table in vocabulary)
        if grows and prefix + name in state:
            table = state[prefix + name]
            state[prefix + name] = torch.cat([table, table[source : source + 1]])


def rare_token(tokenizer: Any, rows: int) -> int:
    """The last ordinary token: vocabularies list merges and pieces from frequent to rare."""
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in tokenizer.get_vocab().values() if i < rows and i not in special]
    return max(ordinary, default=rows - 1)


def vocabulary_file(tokenizer: Any, rows: int) -> str:
    """``vocab.txt`` of a BERT tokenizer, without what is added on loading and by processors.

    Args:
        rows: of the embedding, among them one for ``[DEC]``.

    Raises:
        CheckpointError: the tokenizer has another number of tokens.
    """
    added = (BEGIN, IMAGE_TOKEN)
    by_id = {i: t for t, i in tokenizer.get_vocab().items() if t not in added and i < rows}
    if len(by_id) + 1 != rows:
        raise CheckpointError(
            f"The tokenizer has {len(by_id)} tokens beside {BEGIN}, but the embedding {rows} rows."
        )
    last = max(by_id)
    # An id without token (the vocabulary listed one twice): see `text.save_tokenizer`.
    return "".join(by_id.get(i, by_id[last]) + "\n" for i in range(last + 1))
