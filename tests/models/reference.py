"""The tiny reference models of the original BLIP-2: weights, inputs, and every number they gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.blip2.weights import load_pretrained

FOLDER = Path(__file__).parents[1] / "data" / "lavis_stage1"


def stage1_json() -> dict[str, Any]:
    return json.loads((FOLDER / "stage1.json").read_text())


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def tiny_eva(*, frozen: bool = True) -> nn.Module:
    """3 blocks of width 64 for 56 pixels, without final norm."""
    from timm.models.eva import Eva

    class TinyEva(Eva):
        def __init__(self) -> None:
            super().__init__(
                img_size=56,
                patch_size=14,
                num_classes=0,
                global_pool="",
                embed_dim=64,
                depth=3,
                num_heads=4,
                mlp_ratio=2.6,
            )
            self.norm = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.forward_features(images)

    return TinyEva().requires_grad_(not frozen)


def tiny_config(**changes: Any) -> Blip2Config:
    qformer = QFormerConfig(
        hidden_size=48,
        num_layers=4,
        num_heads=4,
        intermediate_size=96,
        max_positions=64,
        dropout=0.0,
        attention_dropout=0.0,
        init="none",
    )
    settings: dict[str, Any] = {
        "qformer": qformer,
        "num_query_tokens": 8,
        "embed_dim": 32,
        "max_txt_len": 16,
        "tokenizer": str(FOLDER),
        **changes,
    }
    return Blip2Config(**settings)


def reference_model(
    cls: type[Blip2Qformer] = Blip2Qformer, *, frozen: bool = True, **changes: Any
) -> Blip2Qformer:
    """The model of the reference files, with the weights of `eva_state`."""
    cfg = tiny_config(**changes)
    model = cls(cfg, vision=tiny_eva(frozen=frozen), tokenizer=build_tokenizer(str(FOLDER)))
    load_pretrained(model, str(FOLDER / "eva_state.safetensors"))
    return model


def reference_batch(tag: str) -> dict[str, Any]:
    case = stage1_json()["cases"][tag]
    name = "eva_frozen_image_id" if tag == "eva_frozen_image_id" else "eva_frozen"
    samples = {
        "image": tensors(f"{name}_tensors")["image"],
        "text_input": case["inputs"]["text_input"],
    }
    if "image_id" in case["inputs"]:
        samples["image_id"] = torch.tensor(case["inputs"]["image_id"])
    return samples


def reference_negatives(tag: str) -> tuple[Tensor, Tensor]:
    case = stage1_json()["cases"][tag]
    return (
        torch.tensor(case["neg_image_index_for_text"]),
        torch.tensor(case["neg_text_index_for_image"]),
    )
