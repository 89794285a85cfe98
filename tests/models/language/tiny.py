"""Tiny random language models of many families, each in a folder with a tokenizer of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from lavislite.models.language.base import LanguageConfig, build_language

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = [
    "a photo of a red cat sitting on the small table",
    "Question: how many dogs are running? Answer: two",
]
VOCABULARY = 300

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
GROUPED = {**DECODER, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER_DECODER = {"decoder_start_token_id": 0, **IDS}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTConfig", {**DECODER, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_projected": ("OPTConfig", {**DECODER, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    ),
    "gpt_neox": ("GPTNeoXConfig", {**DECODER, "intermediate_size": 48}),
    "llama": ("LlamaConfig", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "sliding_window": 16}),
    "mistral": ("MistralConfig", GROUPED),
}
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bart": (
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 96,
            "forced_eos_token_id": None,
        },
    ),
}
FAMILIES = {**CAUSAL, **SEQ2SEQ}


@cache
def _trained(around: str) -> str:
    """A byte-level BPE, as JSON; `around` is the template of what it puts around a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet
        ),
    )
    if around != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer.to_str()


def tiny_tokenizer(around: str = "$A", **special: Any) -> Any:
    """`special` overrides the names of the special tokens; None takes one away."""
    names = {
        "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        **special,
    }  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(around)),
        **{key: value for key, value in names.items() if value is not None},
    )


def around(family: str) -> str:
    """What the family's tokenizer puts around a text."""
    habits = {"opt": "<s> $A", "llama": "<s> $A", "t5": "$A </s>", "bart": "<s> $A </s>"}
    return habits.get(family, "$A")


def tiny_config(family: str, **changes: Any) -> Any:
    name, settings = FAMILIES[family]
    ids = ENCODER_DECODER if family in SEQ2SEQ else IDS
    # Without dropout, and with weights large enough that tokens differ clearly.
    quiet = {"dropout": 0.0, "dropout_rate": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    spread = {"init_std": 0.2, "initializer_range": 0.2}
    return getattr(transformers, name)(**{**quiet, **spread, **settings, **ids, **changes})


def save_tiny(folder: Path, family: str, tokenizer: Any = None, **changes: Any) -> Path:
    """A folder as ``save_pretrained`` leaves it: configuration, weights, tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(family, **changes)
    auto: Any = transformers.AutoModelForCausalLM
    if family in SEQ2SEQ:
        auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(config)
    if changes.get("tie_word_embeddings") is False or family == "t5":
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer(around(family))).save_pretrained(folder)
    return folder


def build_tiny(folder: Path, family: str, **settings: Any) -> Any:
    """The adapter around the model that `save_tiny` leaves in `folder`."""
    return build_language(LanguageConfig(name=str(save_tiny(folder, family)), **settings))


def random_prefix(language: Any, batch: int, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, n, language.hidden_size, generator=generator) * 0.3
