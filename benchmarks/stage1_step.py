"""One training step of stage 1: the original's way, ours, and ours with cached features.

    python benchmarks/stage1_step.py                    # the size below, fp32, 2 threads
    python benchmarks/stage1_step.py --quick --json benchmarks/results/stage1_step.json

Size: ViT 384 x 12 layers / 6 heads, 224 px, patch 16, frozen; Q-Former 384 x 12 / 6 heads, 32
queries, vocabulary 30,523; captions of 8 to 15 words, max_txt_len 32; batch 16; dropout 0.1. The
original implementation needs 952 GFLOP for this step, 147 of them in the vision forward (torch's
FLOP counter), and `peers/stage1.py`, the side "original", needs as many.

The sides run in turn (A B C, A B C, ...), on the same weights; ratios are medians over the rounds.
The floor is the operations over the rate of a matrix product, measured in the same rounds. All
that twice: as the C library keeps freed memory by itself, and as our runner asks it to on a CPU.
The paper's size (ViT-g, Q-Former 768 x 12) is counted without being computed.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from blueprint import BATCH, Blueprint
from facts import command_line, facts, write_json
from peers.stage1 import peer_losses
from side_by_side import Side, both_ways_with_memory, steps_report

from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.vision.base import VisionConfig

ORIGINAL_GFLOP, ORIGINAL_GFLOP_PAPER = 952, 755
VOCABULARY = 30_522  # bert-base-uncased; [DEC] makes 30,523


def build_model(words: list[str], dropout: float) -> Blip2Qformer:
    config = Blip2Config(
        vision=VisionConfig(name="timm:vit_small_patch16_224", weights="none"),
        qformer=QFormerConfig(
            hidden_size=384,
            num_layers=12,
            num_heads=6,
            intermediate_size=1536,
            dropout=dropout,
            attention_dropout=dropout,
            init="none",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        Path(folder, "vocab.txt").write_text("\n".join([*specials, *words]), encoding="utf-8")
        tokenizer = build_tokenizer(folder)
    return Blip2Qformer.from_config(config, tokenizer=tokenizer)


def one_batch(words: list[str], batch_size: int, rng: random.Random) -> dict[str, Any]:
    captions = [" ".join(rng.choices(words, k=rng.randint(8, 15))) for _ in range(batch_size)]
    return {"image": torch.randn(batch_size, 3, 224, 224), "text_input": captions}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    words = [f"w{index}" for index in range(VOCABULARY - 5)]
    model = build_model(words, args.dropout).train()
    batch = one_batch(words, args.batch_size, random.Random(0))
    cached = {k: v for k, v in batch.items() if k != "image"}
    cached["image_features"] = model.tower_features(batch["image"])
    sides = {
        "original": Side(model, lambda samples: peer_losses(model, samples)["loss"], batch),
        "ours": Side(model, lambda samples: model(samples)["loss"], batch, fused=True),
        "cached": Side(model, lambda samples: model(samples)["loss"], cached, fused=True),
    }
    pairs = [("original", "ours"), ("original", "cached")]
    return {
        **both_ways_with_memory(sides, pairs, args.steps),
        "gflop_original": ORIGINAL_GFLOP,
        "paper_gflop_per_image": paper(),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "batch_size": args.batch_size,
        "steps": args.steps,
        **facts(args.threads),
    }


def paper() -> dict[str, float]:
    """GFLOP per image at the paper's size: the frozen ViT-g, and all else."""
    model = Blueprint(Blip2Config(), tokens=257)
    found = {"tower": model.tower_gflop(), "rest": model.gflop(cached=True)}
    per_image = {name: round(value / BATCH, 1) for name, value in found.items()}
    return {
        **per_image,
        "whole": round(sum(per_image.values()), 1),
        "original": ORIGINAL_GFLOP_PAPER,
    }


def report(found: dict[str, Any]) -> str:
    size = ", ".join(
        f"{name} {value:.0f}" for name, value in found["paper_gflop_per_image"].items()
    )
    return f"{steps_report(found)}\nGFLOP per image at the paper's size: {size}"


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="three rounds")
    parser.add_argument("--steps", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps = 3
    found = measure(args)
    print(report(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
