"""Training on stored features of the frozen vision tower: step, rounding error, size on disk.

    python benchmarks/feature_cache.py                   # half of the paper's widths, fp32
    python benchmarks/feature_cache.py --quick --json feature_cache.json
    python benchmarks/feature_cache.py --divide 1 --device cuda --batch-size 64    # its own size

Size: the paper's stage 1, every width divided: ViT-g (1408 x 39 layers, 224 px, patch 14), Q-Former
768 x 12, 32 queries, vocabulary 30,522, captions of 8 to 15 words. At the paper's size a picture
costs 518 GFLOP in the tower and about 130 in the training of the Q-Former.

Sides, in turn: the step that computes the features of pictures that are in memory already, and the
step that reads the features of as many pictures from a store (bf16, mapped, random rows) and puts
them together. Ratios are medians over the rounds; the floor is the operations over the rate of a
matrix product, measured in between. Rounding errors are relative (RMS), against what the tower
said; the change of the loss is that of one batch without dropout.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import command_line, facts, write_json
from side_by_side import gflop, in_turn, medians, product_of, ratio, table
from torch import Tensor

from lavislite.common.allocator import keep_memory
from lavislite.common.loading import to_device
from lavislite.datasets.loading import TrainLoader
from lavislite.features.layout import Layout
from lavislite.features.store import FeatureStore, Writer, header_of
from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.vision.base import VisionConfig

DTYPES = ("fp32", "bf16", "int8")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAPER = Layout(257, 1408, "bf16")
_COUNTED = 2  # pictures whose operations are counted
COCO = 118_287  # pictures of train2017


def build_model(
    words: list[str], *, divide: int, layers: int, dropout: float, device: str
) -> Blip2Qformer:
    width, heads = 768 // divide, max(1, 12 // divide)
    tower = {
        "patch_size": 14,
        "embed_dim": 1408 // divide,
        "depth": layers,
        "num_heads": max(1, 16 // divide),
        "mlp_ratio": 6144 / 1408,
    }
    config = Blip2Config(
        vision=VisionConfig(name="timm:vit_small_patch16_224", weights="none", options=tower),
        qformer=QFormerConfig(
            hidden_size=width,
            num_layers=12,
            num_heads=heads,
            intermediate_size=4 * width,
            dropout=dropout,
            attention_dropout=dropout,
            init="none",
        ),
        embed_dim=max(8, 256 // divide),
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join([*SPECIALS, *words]), encoding="utf-8")
        return Blip2Qformer.from_config(config, tokenizer=build_tokenizer(folder)).to(device)


class Rows:
    """A data set of the rows of a store, each with a caption."""

    name, split = "rows", "train"

    def __init__(self, store: FeatureStore, captions: list[str]) -> None:
        self.store, self.captions = store, captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image_features": self.store.read(row, 0), "text_input": self.captions[row]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        features = torch.stack([sample["image_features"] for sample in samples])
        return {
            "image_features": features,
            "text_input": [sample["text_input"] for sample in samples],
        }

    def record_id(self, row: int) -> str:
        return str(row)


class Training:
    """Steps of one model."""

    def __init__(self, model: Blip2Qformer, device: str) -> None:
        self.model, self.device = model, torch.device(device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def autocast(self) -> Any:
        gpu = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext()

    def backward(self, batch: dict[str, Any]) -> None:
        with self.autocast():
            loss = self.model(to_device(batch, self.device))["loss"]
        loss.backward()

    def step(self, batch: dict[str, Any]) -> None:
        self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gflop(self, batch: dict[str, Any]) -> float:
        found = gflop(lambda: self.backward(batch))
        self.model.zero_grad(set_to_none=True)
        return found

    @torch.no_grad()
    def loss(self, batch: dict[str, Any]) -> float:
        self.model.eval()
        with self.autocast():
            found = float(self.model(to_device(batch, self.device))["loss"])
        self.model.train()
        return found


def write_store(folder: Path, features: Tensor, rows: int) -> FeatureStore:
    """`rows` rows, of the given features [b, T, C] over and over."""
    layout = Layout(features.shape[1], features.shape[2], "bf16")
    store = FeatureStore(folder, header_of(layout, 1, rows))
    store.note()
    store.allot(np.arange(1, rows + 1, dtype=np.uint64))
    raw, writer = layout.encode(features).cpu().numpy(), Writer(store)
    for row in range(rows):
        writer.write(row, 0, raw[row % len(raw)])
        writer.mark(row, 1)
    writer.commit()
    return store


def errors(training: Training, batch: dict[str, Any], features: Tensor) -> dict[str, Any]:
    """Of each type the rounding error, the change of the loss, bytes per picture here and there."""
    exact = {**batch, "image_features": features}
    reference, found = training.loss(exact), {}
    for dtype in DTYPES:
        layout = Layout(features.shape[1], features.shape[2], dtype)
        stored = torch.stack([layout.decode(raw) for raw in layout.encode(features)])
        change = training.loss({**exact, "image_features": stored}) - reference
        paper = Layout(PAPER.tokens, PAPER.width, dtype).nbytes
        found[dtype] = {
            "relative_error": float(f"{layout.relative_error(features):.2g}"),
            "relative_change_of_loss": float(f"{change / reference:.2g}"),
            "kB_per_picture": round(layout.nbytes / 1e3, 1),
            "kB_per_picture_of_vit_g": round(paper / 1e3, 1),
            "GB_of_coco_with_vit_g": round(paper * COCO / 1e9, 1),
        }
    return found


def reading_rate(rows: Rows, batch_size: int, workers: int, batches: int) -> float:
    """Pictures per second that a training loader reads from the store."""
    loader = TrainLoader([rows], batch_size=batch_size, num_workers=workers)
    steps = loader.batches(0, batches + 4)
    for _ in range(4):
        next(steps)
    start = time.perf_counter()
    for _ in steps:
        pass
    return batches * batch_size / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device == "cpu":
        keep_memory()  # as our runner does
    rng = random.Random(0)
    words = [f"w{index}" for index in range(30_522 // args.divide - len(SPECIALS))]
    sizes = {name: getattr(args, name) for name in ("divide", "layers", "dropout", "device")}
    training = Training(build_model(words, **sizes), args.device)
    model = training.model.train()
    captions = [
        " ".join(rng.choices(words, k=rng.randint(8, 15)))
        for _ in range(max(args.rows, args.batch_size))
    ]
    texts = {"text_input": captions[: args.batch_size]}
    batch = {"image": torch.randn(args.batch_size, 3, 224, 224), **texts}
    with torch.no_grad():
        features = model.tower_features(batch["image"].to(args.device))
    sides_of: dict[str, dict[str, Any]] = {
        "uncached": batch,
        "cached": {"image_features": features, **texts},
    }
    few = {name: {key: x[:_COUNTED] for key, x in b.items()} for name, b in sides_of.items()}
    operations = {name: training.gflop(b) / _COUNTED for name, b in few.items()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = Rows(write_store(Path(folder), features, len(captions)), captions)
        loader = TrainLoader([rows], batch_size=args.batch_size)
        reads = loader.batches(0, 10**6)
        product, product_gflop = product_of()
        sides = {
            "uncached": lambda: training.step(batch),
            "cached": lambda: training.step(next(reads)),
            "product": product,
        }
        seconds = in_turn(sides, args.steps, warm_up=0)  # counting has warmed both
        rate = reading_rate(rows, args.batch_size, args.workers, args.read_batches)
    on_gpu = args.device != "cpu"  # the product above is the CPU's
    per_second = product_gflop / medians(seconds)["product"]
    floor = {k: round(v * args.batch_size / per_second, 3) for k, v in operations.items()}
    return {
        "gflop_per_picture": {k: round(v, 2) for k, v in operations.items()},
        "gflop_ratio": round(operations["uncached"] / operations["cached"], 2),
        "seconds": {name: medians(seconds)[name] for name in operations},
        "seconds_floor": None if on_gpu else floor,
        "times_faster": round(ratio(seconds, "uncached", "cached"), 2),
        "stored": errors(training, texts, features),
        "pictures_read_per_second": round(rate),
        "reading_workers": args.workers,
        "batch_size": args.batch_size,
        "divide": args.divide,
        "tower_layers": args.layers,
        "dropout": args.dropout,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
        "steps": args.steps,
        **facts(args.threads),
    }


def lines(found: dict[str, Any]) -> str:
    work, floor = found["gflop_per_picture"], found["seconds_floor"]
    steps = [["step", "GFLOP per picture", "seconds", "floor"]]
    for side, seconds in found["seconds"].items():
        steps.append(
            [side, f"{work[side]:.1f}", f"{seconds:.3f}", f"{floor[side]:.3f}" if floor else "-"]
        )
    stored = [
        ["stored as", "relative error", "change of loss", "kB per picture", "ViT-g", "COCO, ViT-g"]
    ]
    for dtype, of in found["stored"].items():
        error, change, here, paper, coco = of.values()
        stored.append(
            [dtype, f"{error:.1e}", f"{change:+.1e}", f"{here}", f"{paper}", f"{coco} GB"]
        )
    workers = found["reading_workers"]
    return "\n".join(
        [
            table(steps),
            f"cached: {found['times_faster']} x as fast, {found['gflop_ratio']} x fewer operations",
            f"read by {workers} worker(s): {found['pictures_read_per_second']} pictures/s",
            "",
            table(stored),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="about a minute: 3 rounds")
    parser.add_argument("--steps", type=int, default=7, help="timed rounds")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--divide", type=int, default=2, help="the paper's widths by so much")
    parser.add_argument("--layers", type=int, default=39, help="of the tower")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rows", type=int, default=256, help="pictures in the store")
    parser.add_argument("--workers", type=int, default=1, help="that read, for the reading rate")
    parser.add_argument("--read-batches", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="for the store; default: the temporary folder")
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.rows, args.read_batches = 3, 64, 20
    found = measure(args)
    print(lines(found))
    print(json.dumps(found, indent=2))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
