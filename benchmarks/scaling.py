"""What the paper's recipes need on 16 A100 of 40 GB, by simulation: what fits, with which strategy.

    python benchmarks/scaling.py                               all of them, ten to twenty minutes
    python benchmarks/scaling.py --only pretrain_stage1_vitg --out /tmp/table.md

Nothing is trained and no GPU is needed: see `lavislite estimate`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from facts import facts, facts_line

from lavislite.common.config import load_config
from lavislite.estimate import Estimate, estimate
from lavislite.estimate.gpus import find_gpu
from lavislite.estimate.memory import GIB

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "projects/blip2/paper"
RESULTS = ROOT / "benchmarks/results/scaling.md"
GPUS, GPU = 16, "a100-40g"

# Recipe -> samples per GPU on 16 of them; None: as the file has it, which is for 16.
RECIPES: dict[str, int | None] = {
    "pretrain_stage1_vitL": None,
    "pretrain_stage1_vitg": None,
    "pretrain_stage2_opt2.7b_vitL": None,
    "pretrain_stage2_opt2.7b": None,
    "pretrain_stage2_opt6.7b": None,
    "pretrain_stage2_flant5xl_vitL": None,
    "pretrain_stage2_flant5xl": None,
    "pretrain_stage2_flant5xxl": None,
    "retrieval_finetune_vitL": 14,
    "retrieval_finetune_vitg": 14,
    "caption_finetune_opt2.7b": 16,
    "caption_finetune_opt6.7b": 16,
    "caption_finetune_flant5xl": 16,
    "vqa_finetune_opt2.7b": 8,
    "vqa_finetune_opt6.7b": 8,
    "vqa_finetune_flant5xl": 8,
}
# Hours that the paper says are enough on 16 A100 of 40 GB (section 3.4).
PUBLISHED = {"pretrain_stage1_vitg": 6 * 24, "pretrain_stage2_flant5xxl": 3 * 24}
# GFLOP per picture of the original's training step at this size, and of its vision forward.
ORIGINAL = {"pretrain_stage1_vitg": (755, 518)}
SCALED = ("pretrain_stage1_vitg", "pretrain_stage2_flant5xxl")
NUMBERS = (8, 16, 32, 64)
WAYS = [(s, c) for s in ("ddp", "fsdp") for c in ("none", "recompute", "offload")]


def look(name: str, gpus: int, batch: int | None) -> Estimate:
    """The estimate of a recipe of the paper, with `batch` samples per GPU."""
    options = [] if batch is None else [f"run.batch_size_train={batch}"]
    started = time.perf_counter()
    cfg = load_config(PAPER / f"{name}.yaml", options)
    found = estimate(cfg, gpus=gpus, gpu=find_gpu(GPU))
    seconds = time.perf_counter() - started
    print(f"{name}, {gpus} GPUs: {seconds:.0f} s", file=sys.stderr)
    return found


# ------------------------------------------------------------------------------------------ tables


def memory_table(found: dict[str, Estimate]) -> Iterator[str]:
    head = [f"{strategy}, {mode}" for strategy, mode in WAYS]
    yield from _head(["recipe", "samples per GPU", *head])
    for name, one in found.items():
        cells = []
        for strategy, mode in WAYS:
            way = one.way(strategy, mode)
            total = f"{way.memory.total / GIB:.1f}"
            cells.append(f"**{total}** ({way.largest})" if way.fits else f"{total} ({way.largest})")
        yield _line([name, str(one.batch), *cells])


def hours_table(found: dict[str, Estimate]) -> Iterator[str]:
    columns = ["recipe", "parameters", "trained", "GFLOP per sample", "of these vision, forward"]
    yield from _head([*columns, "steps", "hours", "with recompute", "the paper"])
    for name, one in found.items():
        counts = list(one.sizes.parameters.values())
        per_sample = one.step.all_flops / one.batch / 1e9
        yield _line(
            [
                name,
                f"{sum(n for n, _ in counts) / 1e9:.2f} B",
                f"{sum(t for _, t in counts) / 1e6:,.0f} M",
                f"{per_sample:,.0f}",
                f"{one.step.flops['vision'] / one.batch / 1e9:,.0f}",
                "?" if one.steps is None else f"{one.steps:,}",
                _hours(one.way("ddp", "none").hours),
                _hours(one.way("ddp", "recompute").hours),
                f"under {PUBLISHED[name]}" if name in PUBLISHED else "",
            ]
        )


def comparison(found: dict[str, Estimate]) -> Iterator[str]:
    """Beside what is known from elsewhere."""
    for name in found.keys() & ORIGINAL.keys():
        one, (whole, vision) = found[name], ORIGINAL[name]
        alone = one.step.flops["vision"] / one.batch / 1e9
        here = one.step.all_flops / one.batch / 1e9
        yield (
            f"- {name}: the original's step takes {whole} GFLOP a picture, {vision} of them in the "
            f"vision tower; here it is {here:.0f} and {alone:.0f}, with what {one.gpus} processes "
            "exchange."
        )
    for name in (n for n in PUBLISHED if n in found):
        one = found[name]
        at_peak = (one.way("ddp", "none").hours or 0) * one.mfu
        yield (
            f"- {name}: {at_peak:.0f} hours at the GPUs' peak, so the paper's bound of "
            f"{PUBLISHED[name]} hours asks for {at_peak / PUBLISHED[name]:.0%} of it; the hours "
            f"above assume {one.mfu:.0%}."
        )


def scaled_table(name: str) -> Iterator[str]:
    """The same whole batch on other numbers of GPUs."""
    cfg = load_config(PAPER / f"{name}.yaml")
    whole = cfg.run.batch_size_train * GPUS
    heads = [f"{s}, {c}" for s, c in WAYS if c != "offload"]
    yield from _head(["GPUs", "samples per GPU", *heads, "received per step, ddp / fsdp", "hours"])
    for number in NUMBERS:
        one = look(name, number, whole // number)
        totals = [
            f"{'**' if w.fits else ''}{w.memory.total / GIB:.1f}{'**' if w.fits else ''}"
            for w in (one.way(s, c) for s, c in WAYS if c != "offload")
        ]
        received = [one.way(s, "none").traffic / GIB for s in ("ddp", "fsdp")]
        yield _line(
            [
                str(number),
                str(one.batch),
                *totals,
                " / ".join(f"{r:.1f}" for r in received),
                _hours(one.way("ddp", "none").hours),
            ]
        )


def _head(columns: Sequence[str]) -> Iterator[str]:
    yield _line(columns)
    yield "|---" * len(columns) + "|"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


# -------------------------------------------------------------------------------------------- page


def page(names: Sequence[str]) -> Iterator[str]:
    gpu = find_gpu(GPU)
    found = {name: look(name, GPUS, RECIPES[name]) for name in names}
    yield "# What the paper's recipes need on 16 A100 of 40 GB"
    yield ""
    yield "By simulation: each step of the real code was followed on tensors without numbers, and"
    yield "nothing below was measured on a GPU. Parameters are exact, operations are torch's own"
    yield "counts; on a CPU operations and memory agree with measurement (`tests/estimate`). What a"
    yield "GPU needs for itself is assumed: 1.0 GiB for CUDA, 0.7 for NCCL, 5 % of the activations"
    yield "for fragments. The optimizer is AdamW, the precision bf16."
    yield ""
    yield "## What fits"
    yield ""
    yield f"GiB per GPU at the recipe's batch (**bold**: within {gpu.memory_gib:g}), and in"
    yield "brackets the samples per GPU that would about fit. `none`, `recompute`, `offload` are"
    yield "`run.activation_checkpointing`; `ddp` and `fsdp` are `run.strategy`."
    yield ""
    yield from memory_table(found)
    yield ""
    yield "## Operations and hours"
    yield ""
    yield f"Hours of computation on {GPUS} GPUs at 30 % of {gpu.tflops:g} TFLOP/s, an assumption;"
    yield "loading, communication and evaluation come on top. Texts: 12 words a caption, 8 a"
    yield "question, 2 an answer, the longest of a batch as long as the recipe allows. Where the"
    yield "tower trains, its recipe computes it again in the backward pass (`grad_checkpointing`),"
    yield "which counts."
    yield ""
    yield from hours_table(found)
    yield ""
    yield from comparison(found)
    for name in (n for n in SCALED if n in names):
        yield ""
        yield f"## {name} on other numbers of GPUs"
        yield ""
        yield "About the same whole batch; GiB per GPU, and GiB that each receives in a step."
        yield ""
        yield from scaled_table(name)
    yield ""
    yield f"({facts_line(facts(1))}; `python benchmarks/scaling.py`)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    args = parser.parse_args(argv)
    text = "\n".join(page(args.only)) + "\n"
    args.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
