"""Hugging Face's BLIP-2 configuration from our modules, and why some models have none.

Their vision tower is a plain ViT: class token, learnt positions, pre-norm blocks with a fused
projection and exact GELU, and one norm at the end, which is our ``ln_vision``.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lavislite.common.errors import UserError

EXPORTABLE = (
    "Exportable are EVA-CLIP-g and plain ViTs of timm with a class token "
    "(timm:vit_*_patch*_224.augreg..., final_norm: false). Our own format holds every model: "
    "lavislite convert --to lavislite."
)


# ------------------------------------------------------------------------------------------ vision


def timm_tower(vision: nn.Module) -> tuple[nn.Module, str]:
    """The network of timm inside a vision backbone, and the prefix of its names there.

    Raises:
        UserError: there is none.
    """
    for module, prefix in ((vision, ""), (getattr(vision, "model", None), "model.")):
        if isinstance(getattr(module, "patch_embed", None), nn.Module):
            assert isinstance(module, nn.Module)
            return module, prefix
    raise _no_tower(vision, "is no plain vision transformer of timm")


def vision_config(vision: nn.Module) -> dict[str, Any]:
    """The entries of `Blip2VisionConfig` for a vision backbone.

    Raises:
        UserError: their vision tower cannot express it; the message says what stands in the way.
    """
    tower, _ = timm_tower(vision)
    obstacle = _obstacle(tower)
    if obstacle is not None:
        raise _no_tower(tower, obstacle)
    net: Any = tower
    block = net.blocks[0]
    return {
        "hidden_size": int(net.num_features),
        "intermediate_size": int(block.mlp.fc1.out_features),
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": int(block.attn.num_heads),
        "image_size": int(net.patch_embed.img_size[0]),
        "patch_size": int(net.patch_embed.patch_size[0]),
        "layer_norm_eps": float(block.norm1.eps),
        "qkv_bias": _has_bias(block.attn),
        "hidden_act": "gelu",
    }


def _no_tower(vision: nn.Module, obstacle: str) -> UserError:
    return UserError(
        f"Hugging Face's BLIP-2 cannot express the vision tower {type(vision).__name__}: it "
        f"{obstacle}. {EXPORTABLE}"
    )


def _obstacle(tower: Any) -> str | None:
    """What of a network of timm has no place in Hugging Face's tower; None when all has."""
    if not hasattr(tower, "blocks") or not isinstance(tower.patch_embed.proj, nn.Conv2d):
        return "has no list of transformer blocks on patches"
    if getattr(tower, "cls_token", None) is None:
        return "has no class token (as in SigLIP)"
    if getattr(tower, "reg_token", None) is not None:
        return "has register tokens (as in DINOv3)"
    if getattr(tower, "rope", None) is not None or tower.pos_embed is None:
        return "has rotary instead of learnt positions (as in DINOv3)"
    if _is_there(tower, "norm_pre"):
        return "has a norm before the first block (as in CLIP)"
    if _is_there(tower, "norm") or _is_there(tower, "fc_norm"):
        return "has a final norm of its own before ln_vision (model.vision.final_norm: false)"
    if tower.pos_embed.shape[1] != 1 + tower.patch_embed.num_patches:
        return "has no position for its class token"
    if len({*tower.patch_embed.img_size}) > 1 or len({*tower.patch_embed.patch_size}) > 1:
        return "reads images or patches that are not square"
    for block in tower.blocks:
        if (obstacle := _block_obstacle(block)) is not None:
            return obstacle
    return None


def _block_obstacle(block: Any) -> str | None:
    if not all(hasattr(block, part) for part in ("norm1", "attn", "norm2", "mlp")):
        return f"has blocks of another kind ({type(block).__name__})"
    if "PostNorm" in type(block).__name__ or "Parallel" in type(block).__name__:
        return f"has blocks of another kind ({type(block).__name__})"
    scaled = (getattr(block, name, None) is not None for name in ("gamma_1", "gamma_2"))
    if any(scaled) or _is_there(block, "ls1") or _is_there(block, "ls2"):
        return "scales the layers' outputs (LayerScale, as in DINOv2)"
    if not all(type(norm).__name__.startswith("LayerNorm") for norm in (block.norm1, block.norm2)):
        return f"norms with {type(block.norm1).__name__}"
    if any(_is_there(block.attn, name) for name in ("q_norm", "k_norm", "norm")):
        return "norms inside its attention"
    if getattr(block.attn, "qkv", None) is None:
        return "projects query, key and value apart"
    parts = [name for name, _ in block.mlp.named_parameters()]
    if any(not name.startswith(("fc1.", "fc2.")) for name in parts) or not _is_gelu(block.mlp):
        return "has another feed-forward layer than two projections with exact GELU between them"
    if block.mlp.fc1.out_features != block.mlp.fc2.in_features:
        return "has a gated feed-forward layer"
    return None


def _is_there(owner: Any, name: str) -> bool:
    module = getattr(owner, name, None)
    return module is not None and not isinstance(module, nn.Identity)


def _is_gelu(mlp: Any) -> bool:
    return type(mlp.act).__name__ == "GELU" and getattr(mlp.act, "approximate", "none") == "none"


def _has_bias(attention: Any) -> bool:
    separate = getattr(attention, "q_bias", None) is not None
    return separate or attention.qkv.bias is not None


# ---------------------------------------------------------------------------------------- Q-Former


def qformer_config(model: Any, *, vocab_size: int, text: bool) -> dict[str, Any]:
    """The entries of `Blip2QFormerConfig`; with `text` the side of stage 1 that reads captions."""
    cfg = model.cfg.qformer
    return {
        "vocab_size": vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.intermediate_size or 4 * cfg.hidden_size,
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
        "max_position_embeddings": cfg.max_positions,
        "initializer_range": cfg.initializer_range,
        "layer_norm_eps": cfg.layer_norm_eps,
        "cross_attention_frequency": cfg.cross_attention_freq,
        "use_qformer_text_input": text,
    }


# ---------------------------------------------------------------------------------- language model


def text_config(lm: Any, kind: str) -> dict[str, Any]:
    """A copy of a language model's configuration, as an entry of `Blip2Config`.

    Args:
        kind: "causal" or "seq2seq".

    Raises:
        UserError: Hugging Face's BLIP-2 would build another model from it.
    """
    check_language(lm, kind)
    return plain_config(lm)


def plain_config(lm: Any) -> dict[str, Any]:
    """The configuration of a language model as a dictionary, without what a machine put into it.

    The live configuration is not touched: handed over to another model it would lose its attention,
    and its own model the causal mask.

    Raises:
        UserError: the model is quantised, or partly not in memory.
    """
    check_whole(lm)
    config = copy.deepcopy(lm.config).to_dict()
    for key in ("_name_or_path", "transformers_version", "quantization_config"):
        config.pop(key, None)
    config["architectures"] = [type(lm).__name__]
    if config.get("scale_decoder_outputs") is False:
        config["tie_word_embeddings"] = False  # T5's class writes true, and remembers it like this
    return config


def check_whole(lm: Any) -> None:
    """Raise UserError when a model's own weights are not in memory."""
    name = type(lm).__name__
    if getattr(lm, "is_quantized", False) or getattr(lm, "hf_quantizer", None) is not None:
        raise UserError(
            f"Cannot write the language model {name}: it is quantised. Load it without "
            "model.language.quantization."
        )
    if any(parameter.is_meta for parameter in lm.parameters()):
        raise UserError(
            f"Cannot write the language model {name}: a part of it was moved out of memory. Load "
            "it without model.language.device_map."
        )


def check_language(lm: Any, kind: str) -> None:
    """Raise UserError when Hugging Face's BLIP-2 cannot hold this language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = lm.config
    name = f"the language model {type(lm).__name__}"
    as_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if as_causal != (kind == "causal"):
        built = "a decoder alone" if as_causal else "an encoder and a decoder"
        raise UserError(
            f"Hugging Face's BLIP-2 cannot hold {name}: of a '{config.model_type}' it always "
            f"builds {built}. Encoder-decoders that work: t5, mt5, umt5, longt5. Our own format "
            "holds every model: lavislite convert --to lavislite."
        )
    width = lm.get_input_embeddings().weight.shape[1]
    if getattr(config, "hidden_size", None) != width:
        raise UserError(
            f"Hugging Face's BLIP-2 cannot hold {name}: its embeddings are {width} wide, its "
            f"layers {getattr(config, 'hidden_size', None)} (as in opt-350m), and image tokens "
            "are projected to the width of the layers there."
        )
