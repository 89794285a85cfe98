"""Questions about pictures: the tower's passes and the time per 100 questions, shared or not.

    python benchmarks/evaluation_vqa.py
    python benchmarks/evaluation_vqa.py --quick --json evaluation_vqa.json

Size: the model of `stage2_step.py`; 5.3 questions of 4 to 12 words per picture, as in VQA v2;
answers of at most 10 tokens by five beams, as published; batch 64. "One by one" hands the model a
picture with each question, in the order of the file, as the original does; "shared" is what the
evaluation does. Both go through the task `vqa`, in turn, and must give the same answers.

The last line is arithmetic, for the paper's size: ViT-g at 518 GFLOP per picture beside OPT-2.7B.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from side_by_side import gflop, in_turn, medians, ratio, table
from stage2_step import SPECIALS, VOCABULARY, build_model, word
from torch import Tensor

from lavislite.common.evaluation import EvalContext
from lavislite.models.blip2.stage2 import Blip2OPT
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig

PER_PICTURE = 5.3
VIT_G, PREFIX_AND_PROMPT, NEW_TOKENS, BEAMS, OPT = 518, 32 + 16, 4, 5, 2.7  # GFLOP; tokens; 1e9


class Questions(torch.utils.data.Dataset):
    """`n` questions about random pictures, one picture after the other."""

    name, split, evaluation, answer_list = "questions", "val", "vqa", None

    def __init__(self, n: int, seed: int = 0) -> None:
        rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
        self.pictures = [int(i / PER_PICTURE) for i in range(n)]
        self.images = torch.randn(self.pictures[-1] + 1, 3, 224, 224, generator=draw)
        words = range(VOCABULARY - len(SPECIALS))
        self.texts = [
            " ".join(word(w) for w in rng.choices(words, k=rng.randint(4, 12))) for _ in range(n)
        ]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.load_image(i), **self.question(i)}

    def question(self, i: int) -> dict[str, Any]:
        return {"text_input": self.texts[i], "index": i}

    def load_image(self, i: int) -> Tensor:
        return self.images[self.pictures[i]]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def record_id(self, i: int) -> str:
        return f"question {i}"

    def annotation(self, i: int) -> dict[str, Any]:
        return {
            "question_id": i, "image_id": str(self.pictures[i]), "image": f"{self.pictures[i]}.jpg",
            "question": self.texts[i], "answers": ["yes"] * 10, "question_type": "",
            "answer_type": "",
        }  # fmt: skip


class QuestionsByPicture(Questions):
    """The same, which can tell its pictures apart."""

    def file_number(self, i: int) -> int:
        return self.pictures[i]

    def by_picture(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for i, picture in enumerate(self.pictures):
            groups.setdefault(picture, []).append(i)
        return sorted(groups.values(), key=lambda asked: -max(len(self.texts[i]) for i in asked))


class Tower:
    """Counts the pictures that the tower looks at."""

    def __init__(self, model: Blip2OPT) -> None:
        self.pictures = 0
        model.visual_encoder.register_forward_hook(self._looked)

    def _looked(self, _: Any, args: tuple[Tensor], __: Tensor) -> None:
        self.pictures += len(args[0])

    def take(self) -> int:
        found, self.pictures = self.pictures, 0
        return found


def at_papers_size() -> dict[str, float]:
    """GFLOP per question: the tower for each question or each picture, and what OPT-2.7B does."""
    language = 2 * OPT * (PREFIX_AND_PROMPT + NEW_TOKENS * BEAMS)
    alone, shared = VIT_G + language, VIT_G / PER_PICTURE + language
    return {"one by one": round(alone), "shared": round(shared), "ratio": round(alone / shared, 2)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder), dropout=0.1)
    task, ctx = VQATask(VQAConfig()), EvalContext(batch_size=args.batch_size)
    splits = {"one by one": Questions(args.questions), "shared": QuestionsByPicture(args.questions)}
    tower, answers = Tower(model), dict[str, list[str]]()
    operations, passes = {}, {}

    def evaluate(name: str) -> None:
        rows = task.evaluate(model, splits[name], ctx).rows
        answers[name] = [row["prediction"] for row in rows]

    for name in splits:
        operations[name] = gflop(lambda: evaluate(name))  # noqa: B023
        passes[name] = tower.take()
    if answers["one by one"] != answers["shared"]:
        raise SystemExit("The answers differ.")
    works = {name: lambda name=name: evaluate(name) for name in splits}
    seconds = in_turn(works, args.rounds, warm_up=0)
    per_100 = 100 / args.questions
    return {
        "questions": args.questions,
        "pictures": len(splits["shared"].images),
        "tower_passes_per_100": {n: round(x * per_100, 1) for n, x in passes.items()},
        "gflop_per_100": {n: round(x * per_100) for n, x in operations.items()},
        "seconds_per_100": {n: round(x * per_100, 2) for n, x in medians(seconds).items()},
        "times_faster": round(ratio(seconds, "one by one", "shared"), 2),
        "gflop_per_question_at_papers_size": at_papers_size(),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        **facts(args.threads),
    }


def report(found: dict[str, Any]) -> str:
    rows = [["100 questions", "tower passes", "GFLOP", "seconds"]]
    keys = ("tower_passes_per_100", "gflop_per_100", "seconds_per_100")
    rows += [[name, *(f"{found[key][name]}" for key in keys)] for name in found[keys[0]]]
    paper = found["gflop_per_question_at_papers_size"]
    return (
        f"{table(rows)}\n\n{found['times_faster']:.2f} x faster, the same answers\n"
        f"ViT-g and OPT-2.7B, GFLOP per question: {paper['one by one']} one by one, "
        f"{paper['shared']} shared ({paper['ratio']} x)"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="64 questions, two rounds")
    parser.add_argument("--questions", type=int, default=212)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.quick:
        args.questions, args.rounds = 64, 2
    found = measure(args)
    print(report(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
