"""Training steps at the paper's size on one GPU: images/s, MFU, peak memory, largest batch.

    python benchmarks/gpu.py --stage 1 --json benchmarks/results/gpu_stage1.json
    python benchmarks/gpu.py --stage 2 --cases plain compiled "compiled, cached"
    python benchmarks/gpu.py --stage 2 --largest 80     # as if the GPU had 80 GiB
    python benchmarks/gpu.py --stage 1 --tiny --device cpu       # whether it runs at all

Stage 1: ViT-g (EVA-CLIP), Q-Former 768 x 12; stage 2: the same with OPT-2.7B. Weights and pictures
are random, frozen parts and autocast bf16, captions 12 words and the longest of a batch 30. Steps
are the training loop's own `TrainStep`, optimizer and all, on a batch that is on the GPU already.
MFU counts the operations of the plain step, against the data sheet's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from facts import facts, write_json
from side_by_side import table

from lavislite.common.schema import RunConfig
from lavislite.estimate.blueprint import build_blueprint
from lavislite.estimate.samples import texts
from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config
from lavislite.models.blip2.stage2 import Blip2OPTConfig
from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig
from lavislite.runners.optim import make_autocast
from lavislite.runners.step import TrainStep

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"compile": True},
    "cached": {"cached": True},
    "compiled, cached": {"compile": True, "cached": True},
    "compiled, CUDA graphs": {"compile": True, "compile_mode": "reduce-overhead"},
    "compiled, int8": {"compile": True, "quantization": "int8"},
    "compiled, fp8": {"compile": True, "quantization": "fp8"},
}
WARM_UP = 4  # steps; the second of them is counted
GIB = 2**30


class Task:
    """What a step needs of a task."""

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        return model(samples)


def config(stage: int, tiny: bool) -> Any:
    small: dict[str, Any] = {}
    language = LanguageConfig(name="facebook/opt-2.7b", end="\n")
    if tiny:
        sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32}
        small["vision"] = VisionConfig(
            name="timm:vit_small_patch16_224", image_size=32, options=sizes
        )
        small["qformer"] = QFormerConfig(hidden_size=64, num_layers=2, num_heads=1)
        layers = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128}
        depth = {"num_hidden_layers": 2, "num_attention_heads": 1}
        language = LanguageConfig(name="facebook/opt-125m", options={**layers, **depth})
    if stage == 1:
        return Blip2Config(**small)
    return Blip2OPTConfig(**small, language=language, prompt="a photo of")


def build(args: argparse.Namespace, quantization: str | None) -> Any:
    """The model with random weights on the device, frozen parts in bf16 or 8 bits."""
    torch.manual_seed(0)
    model = build_blueprint(
        SimpleNamespace(model=config(args.stage, args.tiny)), "bf16", [], device=args.device
    )
    for part in (model.cfg.vision, getattr(model.cfg, "language", None)):
        if part is not None:
            part.quantization = quantization
    model.quantize()
    return model


def make_batch(model: Any, size: int, cached: bool) -> dict[str, Any]:
    longest = min(30, model.cfg.max_txt_len - 2)
    pixels = model.cfg.vision.image_size
    images = torch.randn(size, 3, pixels, pixels, device=model.device)
    batch = {"image": images, "text_input": texts(size, 12, longest)}
    batch["index"] = torch.arange(size)
    if cached:
        del batch["image"]
        # Of one picture each: the tower itself may not have room for all at once.
        seen = torch.cat([model.tower_features(one) for one in images.split(8)])
        batch = {"image_features": seen, **batch}
    return batch


def make_step(model: Any, device: torch.device, **options: Any) -> TrainStep:
    return TrainStep(
        RunConfig(**options),
        task=Task(),
        model=model.train(),
        device=device,
        precision="bf16",
        autocast=make_autocast("bf16", device),
        record_id=str,
    )


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def one_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Speed, MFU and memory of the steps of one case."""
    options, device = dict(CASES[name]), torch.device(args.device)
    cached, kind = options.pop("cached", False), options.pop("quantization", None)
    model = build(args, kind)
    step = make_step(model, device, **options)
    batch = make_batch(model, args.batch_size, cached)
    prepare = model.text_preparer()  # what loading workers do
    begun = time.perf_counter()
    for number in range(WARM_UP):
        step(number, 1e-5, [prepare(batch)])
    step.read()
    warm_up = time.perf_counter() - begun
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ready = prepare(batch)
    sync(device)
    begun = time.perf_counter()
    for number in range(WARM_UP, WARM_UP + args.steps):
        step(number, 1e-5, [ready])
    sync(device)
    rate = args.steps * args.batch_size / (time.perf_counter() - begun)
    memory = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
    found = {
        "images_per_second": round(rate, 1),
        "peak_memory_gib": round(memory, 2),
        "warm_up_seconds": round(warm_up, 1),
        "loss": round(step.read()["loss"], 3),
    }
    return found | {key: round(x, 4) for key, x in step.arithmetic.rates(rate).items()}


def fits(model: Any, size: int, device: torch.device, cached: bool) -> bool:
    """Whether a plain step with so many images does not run out of memory."""
    try:
        batch = make_batch(model, size, cached)
        step = make_step(model, device)
        for number in range(3):
            step(number, 1e-5, [batch])
        sync(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        step = batch = None  # type: ignore[assignment]
        model.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def largest(args: argparse.Namespace, cached: bool) -> int:
    """The largest batch, a multiple of 8, whose plain step fits into `args.largest` GiB."""
    device = torch.device(args.device)
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(args.largest / whole, 1.0))
    model = build(args, None)
    low, high = 0, 8
    while high <= args.most and fits(model, high, device, cached):
        low, high = high, 2 * high
    high = min(high, args.most + 8)
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if fits(model, middle, device, cached) else (low, middle)
    return low


def measure(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": args.stage, "batch_size": args.batch_size}
    if args.device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    if args.largest:
        found["gib"] = args.largest
        for cached in (False, True):
            found["largest batch" + ", cached" * cached] = largest(args, cached)
        return found | facts(torch.get_num_threads())
    rows = {}
    for name in args.cases:
        try:
            rows[name] = one_case(name, args)
        except torch.OutOfMemoryError:
            rows[name] = {"out of memory": True}
        print(name, rows[name], flush=True)
        gc.collect()
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
        torch.compiler.reset()
    return found | {"cases": rows} | facts(torch.get_num_threads())


def report(found: dict[str, Any]) -> str:
    keys = ("images_per_second", "tflops", "mfu", "peak_memory_gib", "warm_up_seconds")
    rows = [["case", *keys]]
    rows += [[n, *(str(row.get(k, "-")) for k in keys)] for n, row in found["cases"].items()]
    return table(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--largest", type=float, help="search the largest batch in so many GiB")
    parser.add_argument("--most", type=int, default=4096, help="no batch larger than this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    found = measure(args)
    print(report(found) if "cases" in found else json.dumps(found, indent=2))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
