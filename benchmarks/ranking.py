"""Choosing among 3,128 answers: every pair of question and answer whole, and ours.

    python benchmarks/ranking.py                        # the size below, fp32, 2 threads
    python benchmarks/ranking.py --quick --json ranking.json

Size: OPT 512 x 6 layers with a vocabulary of 50,272, random; 32 image tokens and questions of 6 to
12 tokens; answers of 1 to 4 tokens, as those of VQA are, 128 at once. The peer computes each pair
from the image tokens on, logits only where the answer is. Ours reads image and question once per
question, and each beginning of an answer once. Both sides run in turn and must choose the same.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from side_by_side import gflop, in_turn, medians, ratio, table
from stage2_step import word, write_opt
from torch import Tensor

from lavislite.models.language.base import LanguageConfig, build_language

ANSWERS = 3128
LENGTHS = {1: 0.55, 2: 0.30, 3: 0.12, 4: 0.03}  # tokens of an answer, the end not counted
WORDS = 4000  # that answers are made of; frequent ones begin many


def answer_list(count: int, rng: random.Random) -> list[str]:
    """Different answers; the n-th most frequent word comes as often as 1/n says."""
    weights = [1 / (n + 1) for n in range(WORDS)]
    found: dict[str, None] = {}
    while len(found) < count:
        length = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        found[" ".join(map(word, rng.choices(range(WORDS), weights, k=length)))] = None
    return list(found)


def whole_pairs(
    language: Any, prefix: Tensor, questions: Sequence[str], answers: Sequence[str], at_once: int
) -> list[Tensor]:
    """Each question with each answer, `at_once` pairs at a time."""
    scores = []
    for row, question in enumerate(questions):
        totals = []
        for first in range(0, len(answers), at_once):
            part = list(answers[first : first + at_once])
            images = prefix[row : row + 1].expand(len(part), -1, -1)
            totals.append(language.nll(images, [question] * len(part), part).total)
        scores.append(torch.cat(totals))
    return scores


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        write_opt(Path(folder))
        config = LanguageConfig(name=folder, weights="none", end="\n", precision="fp32")
        language: Any = build_language(config)
    answers = answer_list(args.answers, rng)
    texts = (rng.choices(range(WORDS), k=rng.randint(6, 12)) for _ in range(args.questions))
    questions = [" ".join(map(word, numbers)) for numbers in texts]
    prefix = torch.randn(args.questions, 32, language.hidden_size) * 0.1
    found: dict[str, list[Tensor]] = {}

    def peer() -> None:
        with torch.no_grad():
            found["peer"] = whole_pairs(language, prefix, questions, answers, args.at_once)

    def ours() -> None:
        choices = [answers] * len(questions)
        found["ours"] = language.rank(prefix, questions, choices, at_once=args.at_once)

    sides = {"whole pairs": peer, "ours": ours}
    operations = {name: round(gflop(side), 1) for name, side in sides.items()}  # warm-up, too
    seconds = in_turn(sides, args.rounds, warm_up=0)
    pairs = list(zip(found["peer"], found["ours"], strict=True))
    _, ((*ids,),) = language.texts.choices(questions[:1], [answers], 32)
    return {
        "gflop": operations,
        "times_fewer_operations": round(operations["whole pairs"] / operations["ours"], 1),
        "seconds": medians(seconds),
        "times_faster": round(ratio(seconds, "whole pairs", "ours"), 1),
        "winners_equal": all(a.argmin() == b.argmin() for a, b in pairs),
        "greatest_relative_difference": max(float(((a - b) / a).abs().max()) for a, b in pairs),
        "questions": args.questions,
        "answers": args.answers,
        "answer_tokens": sum(len(answer) - 1 for answer in ids),
        "different_beginnings": len({a[:end] for a in ids for end in range(1, len(a))}),
        "rounds": args.rounds,
        **facts(args.threads),
    }


def main() -> int:
    parser = command_line(__doc__, quick="256 answers, 2 questions, 1 round")
    parser.add_argument("--answers", type=int, default=ANSWERS)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.answers, args.rounds = 256, 1
    result = measure(args)
    head = ("questions x answers", "", "whole pairs", "lavislite", "ratio")
    size = f"{args.questions} x {args.answers}"
    operations, seconds = result["gflop"], result["seconds"]
    rows = [
        (
            size,
            "operations",
            f"{operations['whole pairs']:.0f} GFLOP",
            f"{operations['ours']:.0f} GFLOP",
            f"{result['times_fewer_operations']} x",
        ),
        (
            size,
            "time",
            f"{seconds['whole pairs']:.1f} s",
            f"{seconds['ours']:.1f} s",
            f"{result['times_faster']} x",
        ),
    ]
    print(table([head, *rows]))
    print(json.dumps(result, indent=2))
    write_json(result, args.json)
    return 0 if result["winners_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
