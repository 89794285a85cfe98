"""Writing text after pictures: transformers' own BLIP-2 and ours, on identical exported weights.

    python benchmarks/generation.py                     # the sizes below, fp32, 2 threads
    python benchmarks/generation.py --quick --json generation.json

Size: image tower and Q-Former 384 x 12 layers, OPT 512 x 6 layers with a vocabulary of 50,272, and
a T5 of 512 x 6 + 6 layers; all random, so that every text has the full length. Both sides get the
same pictures, prompts and options and must write the same texts. The sides run in turn; ratios are
medians over the rounds. "Questions" are 8 different ones about one picture, which transformers'
model is given 8 times, and ours once (``picture.expand``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from side_by_side import gflop, in_turn, medians, ratio, table
from stage2_step import VOCABULARY, word, write_opt
from torch import Tensor

from lavislite.models.blip2.hf_export import export_hf
from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig
from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig

PROMPT = f"{word(1)} {word(2)} {word(3)}"  # "a photo of"


@dataclass
class Case:
    """What is asked: so many pictures, or questions about one; the options of both sides."""

    name: str
    family: str
    pictures: int
    beams: int
    questions: int = 0
    quick: bool = True  # whether --quick has it


CASES = (
    Case("one picture, greedy", "opt", 1, 1),
    Case("one picture, 5 beams", "opt", 1, 5),
    Case("32 pictures, greedy", "opt", 32, 1, quick=False),
    Case("32 pictures, 5 beams", "opt", 32, 5),
    Case("8 questions, greedy", "opt", 1, 1, questions=8),
    Case("8 questions, 5 beams", "opt", 1, 5, questions=8),
    Case("32 pictures, 5 beams, T5", "t5", 32, 5, quick=False),
)


def write_t5(folder: Path) -> None:
    """Configuration and tokenizer of a T5 whose every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config

    words = [word(n) for n in range(VOCABULARY - 3)]
    vocabulary = {token: n for n, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
    T5Config(
        vocab_size=VOCABULARY, d_model=512, d_kv=64, d_ff=1024, num_layers=6, num_heads=8,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        initializer_factor=1.0,
    ).save_pretrained(folder)  # fmt: skip


def build_model(family: str, folder: Path) -> Blip2LLM:
    """With a tower that transformers' BLIP-2 has too."""
    (write_opt if family == "opt" else write_t5)(folder)
    sizes = {"width": 384, "depth": 12, "heads": 6, "inner_width": 1536, "patch_size": 16}
    config = Blip2LLMConfig(
        vision=VisionConfig(name="eva", image_size=224, weights="none", options=sizes),
        qformer=QFormerConfig(
            hidden_size=384, num_layers=12, num_heads=6, intermediate_size=1536, init="none"
        ),
        language=LanguageConfig(name=str(folder), weights="none", precision="fp32"),
    )
    return Blip2LLM.from_config(config).eval().requires_grad_(False)


class Pair:
    """One model in both codes."""

    def __init__(self, family: str, folder: Path) -> None:
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        self.ours = build_model(family, folder / family)
        exported = export_hf(self.ours, folder / f"{family}-exported")
        self.theirs: Any = Blip2ForConditionalGeneration.from_pretrained(exported).eval()
        self.theirs.requires_grad_(False)
        self.processor: Any = AutoProcessor.from_pretrained(exported)

    def sides(self, case: Case, new_tokens: int) -> dict[str, Callable[[], list[str]]]:
        """Ways to the texts of a case."""
        generator = torch.Generator().manual_seed(case.pictures)
        pixels = torch.randn(case.pictures, 3, 224, 224, generator=generator)
        prompts = [PROMPT] * case.pictures
        if case.questions:
            prompts = [" ".join(map(word, range(n, 2 * n + 4))) for n in range(case.questions)]
            pixels = pixels.expand(case.questions, -1, -1, -1)
        options = {"num_beams": case.beams, "max_new_tokens": new_tokens, "min_new_tokens": 1}
        inputs = self._inputs(pixels.contiguous(), prompts)
        return {
            "transformers": lambda: self._texts(inputs, options),
            "ours": lambda: self.ours.generate({"image": pixels, "prompt": prompts}, **options),
        }

    def _inputs(self, pixels: Tensor, prompts: list[str]) -> dict[str, Any]:
        """What their processor makes, with our pixels."""
        tokens = self.processor.tokenizer(prompts, padding=True, return_tensors="pt")
        shape = (len(prompts), self.theirs.config.num_query_tokens)
        slots = torch.full(shape, self.theirs.config.image_token_index)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        left = self.processor.tokenizer.padding_side == "left"
        ids, mask = torch.cat([slots, ids], 1), torch.cat([torch.ones_like(slots), mask], 1)
        if left:  # padding precedes the picture
            order = mask.argsort(dim=1, stable=True)
            ids, mask = ids.gather(1, order), mask.gather(1, order)
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}

    @torch.no_grad()
    def _texts(self, inputs: dict[str, Any], options: dict[str, Any]) -> list[str]:
        ids = self.theirs.generate(**inputs, **options)
        if not self.theirs.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        found = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in found]


def measure_case(pair: Pair, case: Case, args: argparse.Namespace) -> dict[str, Any]:
    sides = pair.sides(case, args.new_tokens)
    texts: dict[str, list[str]] = {}
    operations: dict[str, float] = {}
    for name, side in sides.items():  # this is the warm-up, too
        operations[name] = round(gflop(lambda: texts.update({name: side()})), 1)  # noqa: B023
    # What takes a second is repeated more often.
    rounds = args.rounds if case.pictures > 1 else 3 * args.rounds
    seconds = in_turn(sides, rounds, warm_up=0)
    return {
        "texts_equal": texts["ours"] == texts["transformers"],
        "different_texts": len(set(texts["ours"])),
        "gflop": operations,
        "seconds": medians(seconds),
        "times_faster": round(ratio(seconds, "transformers", "ours"), 2),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases = [c for c in CASES if args.only in c.name and (c.quick or not args.quick)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in dict.fromkeys(case.family for case in cases):
            pair = Pair(family, Path(folder))
            for case in (case for case in cases if case.family == family):
                found[case.name] = measure_case(pair, case, args)
    return {
        "cases": found,
        "new_tokens": args.new_tokens,
        "rounds": args.rounds,
        **facts(args.threads),
    }


def main() -> int:
    parser = command_line(__doc__, quick="8 new tokens, 1 round, fewer cases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose name has this")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.new_tokens = 1, 8
    result = measure(args)
    head = ("case", "transformers", "lavislite", "ratio", "GFLOP", "texts")
    rows = [
        (
            name,
            f"{case['seconds']['transformers']:.2f} s",
            f"{case['seconds']['ours']:.2f} s",
            f"{case['times_faster']:.2f} x",
            f"{case['gflop']['transformers']:.0f} / {case['gflop']['ours']:.0f}",
            "equal" if case["texts_equal"] else "DIFFERENT",
        )
        for name, case in result["cases"].items()
    ]
    print(table([head, *rows]))
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}))
    write_json(result, args.json)
    return 0 if all(case["texts_equal"] for case in result["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
