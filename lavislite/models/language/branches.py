"""Keys and values that several continuations of one text share.

A prompt is read once; then beams, samples or answers go on from it, each in a row of its own. The
rows get the prompt's keys and values once, with room behind them. From then on only what is new is
written, in place, and put into another order.

transformers is imported with this module, which is why others import it inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

ROOM = 32  # new tokens of a row before its memory has to grow

# Entries of a generation configuration that do not matter here: ids we know, and what every call of
# ours decides itself. Any other one asks for the library's own generation.
_DECIDED = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache"),
    *("do_sample", "num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
    *("max_length", "max_new_tokens", "min_new_tokens", "repetition_penalty"),
    *("no_repeat_ngram_size", "temperature", "top_p", "top_k"),
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"),
    *("_from_model_config", "transformers_version"),
}


def can_branch(model: Any) -> bool:
    """Whether the state of `model` is keys and values of all tokens, given in the common way.

    Not so for models with recurrent or shared states, or with rules of their own for generation.
    """
    kind = type(model)
    if not kind.__module__.startswith("transformers."):
        return False
    if kind.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return False
    if not kind._supports_default_dynamic_cache():
        return False
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def can_skip(model: Any) -> bool:
    """Whether padding between real tokens goes unnoticed: places are told, not counted by index."""
    if not can_branch(model) or "position_ids" not in signature(model.forward).parameters:
        return False
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers  # a window would count the padding
    return not getattr(config, "alibi", False) and all(type(x) is DynamicLayer for x in layers)


def can_write(model: Any) -> bool:
    """Whether our own decoding does all that the model's generation configuration asks for."""
    wishes = model.generation_config.to_diff_dict().items()
    return can_branch(model) and all(
        key in _DECIDED for key, value in wishes if value is not None and value is not False
    )


def empty_cache(model: Any) -> Cache:
    """A cache that keeps all tokens; a sliding layer's mask leaves out those that are too old."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


class NoCache(Cache):
    """Keeps nothing. Models that get it, with all texts padded at the right and so without a mask,
    do not ask the device whether several texts are packed into one row.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class BranchCache:
    """The state of N branches that go on after the prompts of B rows.

    cache: what the model is given.

    Args:
        read: the cache after the prompts.
    """

    def __init__(self, read: Any) -> None:
        crossing = isinstance(read, EncoderDecoderCache)
        own = read.self_attention_cache if crossing else read
        self._layers = [BranchLayer(layer) for layer in own.layers]
        self._cross = (
            [BranchLayer(x) for x in read.cross_attention_cache.layers] if crossing else []
        )
        self._rows: list[int] = []
        self.cache: Any = None

    def branch(self, rows: Sequence[int], past: list[Tensor] | None = None) -> None:
        """Begin N branches; number n goes on after row ``rows[n]``.

        Args:
            past: what the branches have read already, as `past` gave it.
        """
        index = None
        if list(rows) != self._rows[: len(rows)]:
            self._rows, index = list(rows), torch.tensor(rows)
        for layer in (*self._layers, *self._cross):
            layer.branch(index, len(rows))
        if past is not None:
            for layer, keys, values in zip(self._layers, past[::2], past[1::2], strict=True):
                layer.update(keys, values)
        self.cache = Cache(layers=list(self._layers))
        if self._cross:
            self.cache = EncoderDecoderCache(self.cache, Cache(layers=list(self._cross)))

    def reorder(self, parents: Tensor) -> None:
        """Branch n goes on from branch ``parents[n]``, which began after the same prompt."""
        for layer in self._layers:
            layer.reorder_cache(parents)

    def past(self, rows: slice) -> list[Tensor]:
        """What these branches have read since they began: keys and values of each layer."""
        return [part for layer in self._layers for part in layer.past(rows)]


class BranchLayer(DynamicLayer):
    """One layer of `BranchCache`; `room` is for so many new tokens, and grows."""

    def __init__(self, read: Any, room: int = ROOM) -> None:
        super().__init__()
        self._room = room
        self.lazy_initialization(read.keys, read.values)
        self._read = (read.keys, read.values)
        self._shared: int = read.keys.shape[2]
        self._length = self._shared
        self._stores: tuple[Tensor, ...] = ()
        self._rows = 0

    def branch(self, index: Tensor | None, rows: int) -> None:
        """The first `rows` branches begin after rows `index` of the prompts, None: as before."""
        if index is not None:
            self._stores = tuple(
                _with_room(x.index_select(0, index.to(x.device)), self._room) for x in self._read
            )
        self._rows, self._length = rows, self._shared
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        begin, self._length = self._length, self._length + key_states.shape[2]
        if self._length > self._stores[0].shape[2]:
            self._stores = tuple(_with_room(x, self._length) for x in self._stores)
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[: self._rows, :, begin : self._length] = new
        return self._show()

    def get_seq_length(self) -> int:
        return self._length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for own in self.past(slice(None)):
            own.copy_(own.index_select(0, beam_idx.to(own.device)))

    def past(self, rows: slice) -> tuple[Tensor, Tensor]:
        keys, values = self._show()
        return keys[rows, :, self._shared :], values[rows, :, self._shared :]

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (x[: self._rows, :, : self._length] for x in self._stores)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(x: Tensor, room: int) -> Tensor:
    """[N, h, L, d] -> the same with `room` further places behind."""
    store = x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])
    store[:, :, : x.shape[2]] = x
    return store
