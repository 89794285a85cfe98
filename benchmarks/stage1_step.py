"""One training step of stage 1: operations, seconds by part, peak memory.

    python benchmarks/stage1_step.py                    # the size below, fp32, 2 threads
    python benchmarks/stage1_step.py --steps 9 --json benchmarks/results/stage1_step.json

Size: ViT 384 x 12 layers / 6 heads, 224 px, patch 16, frozen; Q-Former 384 x 12 / 6 heads, 32
queries, vocabulary 30,523; captions of 8 to 15 words, max_txt_len 32; batch 16; dropout 0.1. The
original implementation needs 952 GFLOP for this step, 147 of them in the vision forward (torch's
FLOP counter).

Seconds on a shared machine drift: compare the operations, or ratios inside one run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from facts import facts
from torch.utils.flop_counter import FlopCounterMode

from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.vision.base import VisionConfig

ORIGINAL_GFLOP = 952
VOCABULARY = 30_522  # bert-base-uncased; [DEC] makes 30,523
PARTS = ("vision", "qformer", "backward", "optimizer")


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


def one_batch(words: list[str], batch_size: int, rng: random.Random) -> dict:
    captions = [" ".join(rng.choices(words, k=rng.randint(8, 15))) for _ in range(batch_size)]
    return {"image": torch.randn(batch_size, 3, 224, 224), "text_input": captions}


class Stopwatch:
    """Adds up seconds by part; `lap` closes the part that has been running."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now


def train_step(model: Blip2Qformer, optimizer: torch.optim.Optimizer, samples: dict) -> Stopwatch:
    watch = Stopwatch()
    handle = model.visual_encoder.register_forward_hook(lambda *_: watch.lap("vision"))
    loss = model(samples)["loss"]
    handle.remove()
    watch.lap("qformer")
    loss.backward()
    watch.lap("backward")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    watch.lap("optimizer")
    return watch


def count_operations(model: Blip2Qformer, samples: dict) -> dict[str, float]:
    """GFLOP of one forward and backward: in all, and of the vision forward alone."""
    with FlopCounterMode(display=False) as whole:
        model(samples)["loss"].backward()
    model.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as vision, torch.no_grad():
        model.visual_encoder(samples["image"])
    return {
        "step": whole.get_total_flops() / 1e9,
        "vision": vision.get_total_flops() / 1e9,
    }


def matmul_rate() -> float:
    """GFLOP/s of a matrix product of the Q-Former's shape; operations over it are the floor."""
    a, b = torch.randn(1024, 384), torch.randn(384, 1536)
    torch.mm(a, b)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024 * 384 * 1536 / statistics.median(seconds) / 1e9


def measure(args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    words = [f"w{index}" for index in range(VOCABULARY - 5)]
    model = build_model(words, args.dropout).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    batches = [one_batch(words, args.batch_size, rng) for _ in range(args.steps + 1)]
    operations = count_operations(model, batches[0])
    train_step(model, optimizer, batches[0])  # warm-up
    rate = matmul_rate()
    watches = [train_step(model, optimizer, batch) for batch in batches[1:]]
    parts = {part: statistics.median(w.seconds[part] for w in watches) for part in PARTS}
    total = statistics.median(sum(w.seconds.values()) for w in watches)
    return {
        "gflop_step": round(operations["step"], 1),
        "gflop_vision_forward": round(operations["vision"], 1),
        "gflop_original": ORIGINAL_GFLOP,
        "seconds_step": round(total, 3),
        "seconds": {part: round(value, 3) for part, value in parts.items()},
        "seconds_floor": round(operations["step"] / rate, 3),
        "matmul_gflops_per_second": round(rate, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "batch_size": args.batch_size,
        "steps": args.steps,
        **facts(args.threads),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default 5)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    result = measure(args)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
