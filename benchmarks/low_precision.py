"""Frozen towers in bf16, int8 and (on a GPU that has it) fp8: outputs, metrics and time.

    python benchmarks/low_precision.py --stage1 output/pretrain_stage1/latest \\
        --stage2 output/pretrain_stage2/latest --json benchmarks/results/low_precision.json
    python benchmarks/low_precision.py --quick      # outputs only

Outputs: what changes in the tokens of a ViT-S of random weights and of the playground's tower, as
root mean square of the difference over that of the tokens, and as cosine. Metrics: a run that was
trained with fp32 towers is evaluated as it is and in each kind; retrieval for stage 1, zero-shot
VQA for stage 2. Times are of this device, in turn, and say nothing about another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from side_by_side import in_turn, medians, ratio, table
from torch import Tensor, nn

from lavislite.build import build_runner
from lavislite.common.config import load_config
from lavislite.common.errors import UserError
from lavislite.models.quantize import quantize, require_quantization
from lavislite.models.vision.base import DTYPES, VisionConfig, build_vision
from lavislite.runners.blocks import blocks_of

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, dict[str, str]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "fp32", "quantization": "int8"},
    "int8 + bf16": {"precision": "bf16", "quantization": "int8"},
    "fp8 + bf16": {"precision": "bf16", "quantization": "fp8"},
}
METRICS = ("r_mean", "itc_r_mean", "txt_r1", "img_r1", "agg_metrics", "acc")


def kinds() -> dict[str, dict[str, str]]:
    """Those that this machine can do."""
    found = {}
    for name, options in KINDS.items():
        try:
            require_quantization(options.get("quantization"), name)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found[name] = options
    return found


# ---------------------------------------------------------------------------------------- outputs


def towers() -> dict[str, VisionConfig]:
    """The playground's only where it has been trained."""
    from lavislite.models.vision.tiny import playground_weights

    random = VisionConfig(name="timm:vit_small_patch16_224", weights="none")
    found = {"ViT-S, random weights": random}
    if playground_weights().exists():
        found["playground"] = VisionConfig(name="tiny", image_size=64)
    return found


def build(config: VisionConfig, options: dict[str, str], device: str, compiled: bool) -> nn.Module:
    """The same weights in each kind."""
    torch.manual_seed(0)
    kind = options.get("quantization")
    tower = build_vision(replace(config, precision="fp32"))
    tower.to(device, DTYPES[options["precision"]])
    if kind is not None:
        quantize(tower, kind, "quantization", fingerprint="")
    for block in blocks_of(tower) if compiled else ():
        block.compile(dynamic=False)
    return tower


def outputs(
    config: VisionConfig, batch: int, rounds: int, compiled: bool
) -> dict[str, dict[str, float]]:
    """Of each kind: relative error and cosine against fp32, and times faster than it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    built = {name: build(config, options, device, compiled) for name, options in kinds().items()}
    generator = torch.Generator().manual_seed(1)
    size = (batch, 3, config.image_size, config.image_size)
    images = torch.randn(size, generator=generator).to(device)
    inputs = {name: images.to(next(t.parameters()).dtype) for name, t in built.items()}

    def look(name: str) -> Tensor:
        with torch.no_grad():
            return built[name](inputs[name])

    whole = look("fp32").float()
    seconds = in_turn({name: lambda name=name: look(name) for name in built}, rounds)
    return {
        name: {
            "relative_rms": round(_relative(look(name).float(), whole), 5),
            "cosine": round(_cosine(look(name).float(), whole), 6),
            "times_faster": round(ratio(seconds, "fp32", name), 2),
            "seconds": medians(seconds)[name],
        }
        for name in built
    }


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the tokens."""
    return float(nn.functional.cosine_similarity(a, b, dim=-1).mean())


# ---------------------------------------------------------------------------------------- metrics


def evaluated(project: Path, run: Path, options: Sequence[str]) -> dict[str, float]:
    """Those METRICS that evaluating `run` by `project` gives."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = [f"run.output_dir={folder}", "run.report=false", "run.tensorboard=false"]
        cfg = load_config(project, [*quiet, *options])
        found = build_runner(cfg, project=project, train=False, checkpoint=run).evaluate()
    return {name: round(value, 3) for name, value in found.items() if _last(name) in METRICS}


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def metrics(project: Path, run: Path, parts: Sequence[str], *more: str) -> dict[str, Any]:
    """Kind of the towers -> metrics; `parts` are the sections of the configuration they are in."""
    found = {}
    for name, options in kinds().items():
        words = [f"model.{part}.{key}={value}" for part in parts for key, value in options.items()]
        found[name] = evaluated(project, run, [*words, *more])
        print(f"{'+'.join(parts)} in {name}: {found[name]}", flush=True)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    batch, rounds = (4, 3) if args.quick else (16, 9)
    found: dict[str, Any] = {
        "outputs": {
            name: outputs(config, batch, rounds, args.compile) for name, config in towers().items()
        },
        "compiled": args.compile,
    }
    if args.stage1:
        retrieval = args.stage1 / "config.yaml"
        only = ["run.valid_splits=[]", "run.evaluate=true"]
        found["stage 1, vision"] = metrics(retrieval, args.stage1, ["vision"], *only)
    if args.stage2:
        project = ROOT / "projects" / "blip2" / "vqa_zeroshot.yaml"
        arch = f"model.arch={args.arch}"
        for parts in (["vision"], ["vision", "language"]):
            title = f"stage 2, {' and '.join(parts)}"
            found[title] = metrics(project, args.stage2, parts, arch, "run.baselines=[]")
    return found | facts(args.threads)


def report(found: dict[str, Any]) -> str:
    rows = [["tower", "kind", "relative RMS", "cosine", "times faster than fp32"]]
    for tower, by_kind in found["outputs"].items():
        for kind, row in by_kind.items():
            keys = ("relative_rms", "cosine", "times_faster")
            rows.append([tower, kind, *(str(row[key]) for key in keys)])
    return table(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="outputs of small batches")
    parser.add_argument("--stage1", type=Path, help="a run folder of pretrain_stage1.yaml")
    parser.add_argument("--stage2", type=Path, help="a run folder of pretrain_stage2.yaml")
    parser.add_argument("--arch", default="blip2_opt", help="of the stage-2 run")
    parser.add_argument("--compile", action="store_true", help="time compiled towers")
    args = parser.parse_args(arguments)
    found = measure(args)
    print(report(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
