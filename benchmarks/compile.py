"""``run.compile`` on a CPU: a step of stage 1 with and without, and how often it compiles again.

    python benchmarks/compile.py --json benchmarks/results/compile.json
    python benchmarks/compile.py --quick      # narrow and shallow: about two minutes the first time

Size: that of `stage1_step.py`; captions of 2 to 30 words, so that the longest of a batch is padded
to 8, 16, 24 or 32 tokens. Both sides take the same steps through the training loop's own
`TrainStep`, in turn; the ratio is the median over the rounds. The warm-up is one step of each
length, with inductor's cache on disk as the machine has it, or, with --cold, empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from side_by_side import in_turn, medians, ratio

from lavislite.common import distributed
from lavislite.common.schema import RunConfig
from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.vision.base import VisionConfig
from lavislite.runners import compile as compiling
from lavislite.runners.optim import make_autocast
from lavislite.runners.step import TrainStep

WORDS = [f"w{index}" for index in range(2000)]
LENGTHS = (5, 13, 21, 29)  # words, [CLS] and [SEP] besides: one of each padded length
RANDOM_BATCHES = 30


class Task:
    """What a step needs of a task."""

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        return model(samples)


def build_model(layers: int, width: int, image_size: int) -> Blip2Qformer:
    """The same weights at each call."""
    torch.manual_seed(0)
    heads = width // 64
    options = {"img_size": image_size, "depth": layers, "embed_dim": width, "num_heads": heads}
    config = Blip2Config(
        vision=VisionConfig(
            name="timm:vit_small_patch16_224",
            weights="none",
            image_size=image_size,
            options=options,
        ),
        qformer=QFormerConfig(
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            dropout=0.0,
            attention_dropout=0.0,
            init="none",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        Path(folder, "vocab.txt").write_text("\n".join([*specials, *WORDS]), encoding="utf-8")
        return Blip2Qformer.from_config(config, tokenizer=build_tokenizer(folder))


def train_step(model: Any, *, compiled: bool) -> TrainStep:
    place = torch.device("cpu")
    return TrainStep(
        RunConfig(compile=compiled),
        task=Task(),
        model=model.train(),
        device=place,
        precision="fp32",
        autocast=make_autocast("fp32", place),
        record_id=str,
    )


def batch(size: int, image_size: int, longest: int, rng: random.Random) -> dict[str, Any]:
    lengths = [longest, *(rng.randint(2, longest) for _ in range(size - 1))]
    texts = [" ".join(rng.choices(WORDS, k=n)) for n in lengths]
    return {"image": torch.randn(size, 3, image_size, image_size), "text_input": texts}


def stepper(step: TrainStep, batches: list[dict[str, Any]]) -> Callable[[], float]:
    """Takes the next step at each call, and returns its loss."""
    numbers = iter(range(10**6))

    def take() -> float:
        number = next(numbers)
        distributed.seed_everything(number, rank=0)  # the same negatives on both sides
        step(number, 1e-4, [batches[number % len(batches)]])
        return step.read()["loss"]

    return take


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    rng = random.Random(0)
    layers, width, image_size, size = (2, 64, 64, 8) if args.quick else (12, 384, 224, 16)
    plain, ours = (
        train_step(build_model(layers, width, image_size), compiled=c) for c in (False, True)
    )
    lengths = LENGTHS[1:3] if args.quick else LENGTHS
    first = [batch(size, image_size, n, rng) for n in lengths for _ in range(2)]  # one is counted
    seconds, differences = {}, []
    sides = [stepper(side, first) for side in (plain, ours)]
    for number, samples in enumerate(first):
        begun = time.perf_counter()
        ours_loss = sides[1]()
        if number % 2 == 0:
            longest = max(len(text.split()) for text in samples["text_input"])
            seconds[f"texts of {longest} words"] = round(time.perf_counter() - begun, 1)
        differences.append(abs(ours_loss - sides[0]()))
    warm = compiling.pieces()
    low = min(lengths)
    more = [
        batch(size, image_size, rng.randint(low, max(lengths)), rng) for _ in range(RANDOM_BATCHES)
    ]
    take = stepper(ours, more)
    for _ in more:
        take()
    again = compiling.pieces() - warm
    timed = in_turn(
        {"plain": stepper(plain, more), "compiled": stepper(ours, more)}, args.rounds, warm_up=2
    )
    return {
        "pieces_of_code": warm,
        f"compiled_again_in_{RANDOM_BATCHES}_random_batches": again,
        "warm_up_seconds": seconds,
        "cache": "empty" if args.cold else "as it was",
        "seconds": medians(timed),
        "times_faster": round(ratio(timed, "plain", "compiled"), 2),
        "greatest_difference_of_losses": max(differences),
        "size": "quick" if args.quick else "full",
        **facts(args.threads),
    }


@contextmanager
def cache(cold: bool) -> Iterator[None]:
    """Inductor's cache as it is, or an empty one."""
    if not cold:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="narrow, shallow, two lengths")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default 9)")
    parser.add_argument("--cold", action="store_true", help="compile everything afresh")
    args = parser.parse_args(arguments)
    with cache(args.cold):
        found = measure(args)
    print(json.dumps(found, indent=2))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
