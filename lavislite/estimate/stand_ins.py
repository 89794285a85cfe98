"""What a model is built from without files: tokenizers that only count, known language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.models.language.base import ADAPTERS, LanguageConfig, build_language

BERT_VOCABULARY = 30_522
OPT_VOCABULARY, T5_VOCABULARY = 50_272, 32_128


class WordTokenizer:
    """A tokenizer whose tokens are the words of a text: enough to learn every shape.

    Args:
        size: entries of the vocabulary.
        begin, end: ids that it puts around every text.
    """

    bos_token: str | None = None

    def __init__(self, size: int, *, begin: Sequence[int] = (), end: Sequence[int] = ()) -> None:
        self._size, self._begin, self._end = size, list(begin), list(end)
        self.pad_token_id = 0
        self.eos_token_id = self.sep_token_id = (self._end or [1])[0]
        self.bos_token_id = size - 1

    def __len__(self) -> int:
        return self._size

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, **_: Any
    ) -> dict[str, list[Any]]:
        if not isinstance(text, str):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        ids = [3 for word in text.split(" ") if word]
        return {"input_ids": [*self._begin, *ids, *self._end] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return ["word" for _ in ids]


def qformer_tokenizer(size: int) -> WordTokenizer:
    """As BERT's, with ``[DEC]`` behind its `size` entries."""
    return WordTokenizer(size + 1, begin=[101], end=[102])


# ---- language models

# hidden size, layers, heads
_OPT = {
    "facebook/opt-125m": (768, 12, 12),
    "facebook/opt-1.3b": (2048, 24, 32),
    "facebook/opt-2.7b": (2560, 32, 32),
    "facebook/opt-6.7b": (4096, 32, 32),
    "facebook/opt-13b": (5120, 40, 40),
    "facebook/opt-30b": (7168, 48, 56),
}
# d_model, d_ff, layers of encoder and decoder each, heads
_FLAN_T5 = {
    "google/flan-t5-small": (512, 1024, 8, 6),
    "google/flan-t5-base": (768, 2048, 12, 12),
    "google/flan-t5-large": (1024, 2816, 24, 16),
    "google/flan-t5-xl": (2048, 5120, 24, 32),
    "google/flan-t5-xxl": (4096, 10240, 24, 64),
}


def known_config(name: str) -> dict[str, Any] | None:
    """What the configuration file of a well-known language model says; None for another."""
    if name in _OPT:
        width, layers, heads = _OPT[name]
        return {
            "model_type": "opt",
            "vocab_size": OPT_VOCABULARY,
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "ffn_dim": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": 2048,
        }
    if name in _FLAN_T5:
        width, inner, layers, heads = _FLAN_T5[name]
        return {
            "model_type": "t5",
            "vocab_size": T5_VOCABULARY,
            "d_model": width,
            "d_kv": 64,
            "d_ff": inner,
            "num_layers": layers,
            "num_decoder_layers": layers,
            "num_heads": heads,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
        }
    return None


def stand_in_language(cfg: LanguageConfig, notes: list[str]) -> nn.Module:
    """The language model of `cfg` with random weights and a `WordTokenizer`.

    Call it within ``torch.device("meta")``: then it takes no memory, unless it is registered under
    a name, by the playground or the user: those are built as they are.

    Args:
        notes: receives a sentence about where the sizes come from.

    Raises:
        ConfigError: it is quantized.
        UserError: neither known here nor to be had.
    """
    from lavislite.models.language.causal import CausalLM
    from lavislite.models.language.seq2seq import Seq2SeqLM

    if cfg.quantization is not None:
        raise ConfigError(
            "model.language.quantization: estimate does not know quantized weights. Set "
            "model.language.quantization=null for an upper bound."
        )
    prefix, _, rest = cfg.name.partition(":")
    if cfg.name in catalog.language_models:  # one of the playground's or of the user's own
        with torch.device("cpu"):
            return build_language(cfg)
    own = replace(cfg, name=rest) if rest and prefix in ADAPTERS else cfg
    config, content = _config(own, notes)
    seq2seq = bool(config.is_encoder_decoder) if own is cfg else prefix == "seq2seq"
    model = _build(own, config, seq2seq)
    if content.get("tie_word_embeddings") is False:
        _untie(model)
    size = model.get_input_embeddings().weight.shape[0]
    if seq2seq:
        return Seq2SeqLM(model, WordTokenizer(size, end=[1]), own)
    return CausalLM(model, WordTokenizer(size, begin=[2]), own)


def _config(cfg: LanguageConfig, notes: list[str]) -> tuple[Any, Mapping[str, Any]]:
    """The library's configuration, and the content of its file."""
    import transformers

    from lavislite.models.language.loading import load_config

    content = known_config(cfg.name)
    if content is None:
        return load_config(cfg)
    notes.append(f"{cfg.name}: sizes from the table of well-known models, nothing was looked up")
    config: Any = transformers.AutoConfig.for_model(**content)
    for key, value in cfg.options.items():
        if not hasattr(config, key):
            raise ConfigError(
                f"model.language.options: the configuration of '{cfg.name}' has no '{key}'."
                f"{did_you_mean(key, config.to_dict())}"
            )
        setattr(config, key, value)
    return config, content


def _build(cfg: LanguageConfig, config: Any, seq2seq: bool) -> Any:
    import transformers

    from lavislite.models.language.loading import frozen_dtype

    auto: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    return auto.from_config(
        config, dtype=frozen_dtype(cfg), trust_remote_code=cfg.trust_remote_code
    )


def _untie(model: Any) -> None:
    """T5's configuration class ties the head to the table, whatever the file says."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
