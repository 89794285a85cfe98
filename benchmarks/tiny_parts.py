"""Tiny random models of many families, written as folders and files that the real code loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig, build_vision

WORDS = "a photo of two red cats and one small dog on the blue table Question: what is it? Answer:"
VOCABULARY = 320
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# ----------------------------------------------------------------------------------------- language

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
_GROUPED = {**_DECODER, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
# Without dropout, and with weights large enough that words differ clearly.
_COMMON = {
    **{"dropout": 0.0, "dropout_rate": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0},
    **{"init_std": 0.2, "initializer_range": 0.2},
}


@dataclass(frozen=True)
class Language:
    """A family: its configuration class, its settings, what its tokenizer puts around a text."""

    config: str
    settings: dict[str, Any]
    around: str = "$A"


LANGUAGES = {
    "OPT": Language("OPTConfig", {**_DECODER, "ffn_dim": 48, "word_embed_proj_dim": 32}, "<s> $A"),
    "OPT, projected": Language(
        "OPTConfig", {**_DECODER, "ffn_dim": 48, "word_embed_proj_dim": 16}, "<s> $A"
    ),
    "GPT-2": Language("GPT2Config", _GPT2),
    "GPT-NeoX": Language("GPTNeoXConfig", {**_DECODER, "intermediate_size": 48}),
    "Llama": Language("LlamaConfig", _GROUPED, "<s> $A"),
    "Qwen3": Language("Qwen3Config", _GROUPED),
    "Gemma3": Language("Gemma3TextConfig", {**_GROUPED, "sliding_window": 16}, "<s> $A"),
    "Mistral": Language("MistralConfig", {**_GROUPED, "sliding_window": 8}, "<s> $A"),
    "T5 gated-gelu": Language("T5Config", _T5, "$A </s>"),
    "BART": Language("BartConfig", _BART, "<s> $A </s>"),
}


def write_tokenizer(folder: Path, around: str = "$A") -> None:
    """A byte-level BPE tokenizer; `around` is the template of what it puts around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([WORDS], trainer)
    if around != "$A":
        core.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ).save_pretrained(folder)


def write_language(family: str, folder: Path) -> LanguageConfig:
    """Configuration, random weights and tokenizer of the family in `folder`, and how to load it."""
    torch.manual_seed(0)
    made = LANGUAGES[family]
    config = getattr(transformers, made.config)(**{**_COMMON, **made.settings, **IDS})
    auto: Any = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    auto.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, made.around)
    return LanguageConfig(name=str(folder))


# ------------------------------------------------------------------------------------------- vision


@dataclass(frozen=True)
class Vision:
    """A family: ``timm:<name>`` and its options, or ``hf:<class>`` and its configuration."""

    name: str
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)


_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
VISIONS = {
    "timm ViT": Vision(
        "timm:vit_tiny_patch16_224",
        32,
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    ),
    "timm ConvNeXt": Vision(
        "timm:convnext_atto", 64, {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    ),
    "timm ResNet": Vision("timm:resnet10t", 64, {"channels": [16, 32, 48, 64], "stem_width": 16}),
    "hf CLIP": Vision("hf:CLIPVision", 32, _TOWER),
    "hf SigLIP": Vision("hf:SiglipVision", 32, _TOWER),
    "hf DINOv2": Vision("hf:Dinov2", 32, {**_TOWER, "mlp_ratio": 2}),
}


def write_vision(family: str, folder: Path) -> VisionConfig:
    """Random weights of the family in `folder`, and how to load them."""
    torch.manual_seed(0)
    made = VISIONS[family]
    kind, _, name = made.name.partition(":")
    if kind == "hf":
        config = getattr(transformers, f"{name}Config")(**made.options)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        return VisionConfig(name=f"hf:{folder}", image_size=made.image_size)
    settings: dict[str, Any] = {
        "name": made.name, "image_size": made.image_size, "options": made.options
    }  # fmt: skip
    backbone = build_vision(VisionConfig(weights="none", **settings))
    state: dict[str, torch.Tensor] = backbone.model.state_dict()  # type: ignore[union-attr]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return VisionConfig(weights=str(path), **settings)
