"""Tiny recipes, and their models with real numbers to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lavislite.build import build_task
from lavislite.common.config import Config, resolve
from lavislite.estimate.blueprint import build_blueprint
from lavislite.estimate.samples import make_samples
from lavislite.estimate.sizes import sizes_of
from lavislite.estimate.step import Simulator

QFORMER = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "max_positions": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def recipe(model: dict[str, Any] | None = None, **run: Any) -> Config:
    """Stage 1 with a tiny tower, or what `model` makes of it."""
    data = {
        "model": {
            "arch": "blip2",
            "vision": {"name": "tiny", "image_size": 32},
            "qformer": QFORMER,
            "num_query_tokens": 4,
            "max_txt_len": 16,
            **(model or {}),
        },
        "datasets": {"coco_caption": {}},
        "run": {"batch_size_train": 8, "max_steps": 100, "precision": "fp32", **run},
    }
    return resolve(data, origin="a test")


def language_folder(folder: Path, kind: str) -> str:
    """A folder with nothing but the configuration of a tiny OPT or T5."""
    from transformers import OPTConfig, T5Config

    if kind == "opt":
        config: Any = OPTConfig(
            vocab_size=99,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    else:
        config = T5Config(
            vocab_size=99,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=3,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    config.save_pretrained(folder)
    return str(folder)


def stage2(folder: Path, kind: str) -> Config:
    language = {"name": language_folder(folder, kind), "end": None}
    return recipe({"arch": f"blip2_{kind}", "language": language})


def simulator(cfg: Config, *, gpu: bool = False) -> Simulator:
    model = build_blueprint(cfg, "fp32", [])
    sharded = sizes_of(model).sharded
    return Simulator(model, build_task(cfg), precision="fp32", sharded=sharded, gpu=gpu)


def real(cfg: Config, batch: int, device: str = "cpu") -> tuple[Any, Any, dict[str, Any]]:
    """Model, task and samples with numbers."""
    torch.manual_seed(0)
    model = build_blueprint(cfg, "fp32", [], device=device)
    task = build_task(cfg)
    samples = make_samples(model, task, batch, cfg.model.vision.image_size)
    samples["image"] = torch.randn(samples["image"].shape, device=device)
    return model, task, samples
