"""Tiny models of every kind that can be exported, built from configurations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig
from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig

from .language.tiny import save_tiny
from .reference import FOLDER, tiny_config
from .reference_stage2 import DATA, KINDS, stage2_config

STAGE2 = ("opt", "t5", "llama")
CLASSES = {"stage1": "Blip2ForImageTextRetrieval"} | dict.fromkeys(
    STAGE2, "Blip2ForConditionalGeneration"
)


def tiny_vision() -> VisionConfig:
    """The reference's EVA, by name."""
    sizes = {"width": 64, "depth": 3, "heads": 4, "inner_width": 166}
    return VisionConfig(name="eva", image_size=56, weights="none", options=sizes)


def build(kind: str, folder: Path, **changes: Any) -> Any:
    """A model whose every tensor matters, in evaluation mode.

    "stage1", "opt" and "t5" (with a head of its own) have the reference's weights; "llama" has
    random ones and three unused rows in its vocabulary.
    """
    settings: dict[str, Any] = {"vision": tiny_vision(), **changes}
    if kind == "stage1":
        model: Any = Blip2Qformer.from_config(tiny_config(**settings))
        model.load_pretrained(FOLDER / "eva_state.safetensors")
    elif kind in KINDS:
        model = KINDS[kind][0].from_config(stage2_config(kind, folder, **settings))
        model.load_pretrained(DATA / f"lavis_{kind}" / "state.safetensors")
    else:
        name = str(save_tiny(folder / f"{kind}-language", kind, vocab_size=303))
        cfg = Blip2LLMConfig(
            qformer=tiny_config().qformer,
            num_query_tokens=8,
            language=LanguageConfig(name=name),
            **settings,
        )
        model = Blip2LLM.from_config(cfg)
        _unsettle(model)
    return model.eval()


@torch.no_grad()
def _unsettle(model: nn.Module) -> None:
    """Move every bias and norm away from its neutral value."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(3))


def expected_names(kind: str, lm: Any) -> set[str]:
    """Every tensor of a folder: what transformers saves and vLLM's loader wants, nothing else."""
    names = {"query_tokens", "vision_model.embeddings.class_embedding"}
    names |= {"vision_model.embeddings.position_embedding"}
    pairs = ["vision_model.embeddings.patch_embedding", "vision_model.post_layernorm"]
    for i in range(3):
        layer = f"vision_model.encoder.layers.{i}."
        parts = ("layer_norm1", "layer_norm2", "self_attn.qkv", "self_attn.projection")
        pairs += [layer + part for part in (*parts, "mlp.fc1", "mlp.fc2")]
    pairs.append("qformer.layernorm")
    for i in range(4):
        layer = f"qformer.encoder.layer.{i}."
        for attention in ("attention", "crossattention")[: 2 if i % 2 == 0 else 1]:
            pairs += [f"{layer}{attention}.attention.{part}" for part in ("query", "key", "value")]
            pairs += [f"{layer}{attention}.output.{part}" for part in ("dense", "LayerNorm")]
        for side in ("_query", "") if kind == "stage1" else ("_query",):
            pairs += [f"{layer}intermediate{side}.dense", f"{layer}output{side}.dense"]
            pairs.append(f"{layer}output{side}.LayerNorm")
    if kind == "stage1":
        pairs += ["vision_projection", "text_projection", "itm_head"]
        names |= {f"embeddings.{what}_embeddings.weight" for what in ("word", "position")}
    else:
        pairs.append("language_projection")
        names |= {f"language_model.{name}" for name in distinct_tensors(lm)}
    return names | {f"{pair}.{end}" for pair in pairs for end in ("weight", "bias")}
