"""Every vision family with every language family: does the pair learn, write and survive a restart?

    python benchmarks/backbone_grid.py                          # the whole grid, one thread
    python benchmarks/backbone_grid.py --vision "timm ViT" --language OPT BART

All models are tiny and random, but lie in folders and files, so that the code that loads real ones
loads them. In each cell the bridge between a frozen tower and a frozen language model is trained on
one batch of four pictures with four captions. A cell is good when

* the loss has fallen by a twentieth,
* it is higher with each picture's neighbour in its place: the pictures are read,
* the weights of tower and language model are the same as before,
* greedy and beam search write a text for each picture,
* the trained checkpoint, in a freshly built model, gives the same loss and the same texts.

Prints a table, writes it to benchmarks/results/backbone_grid.md; exit code 1 when a cell is bad.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from facts import facts, facts_line
from safetensors.torch import save_file
from tiny_parts import LANGUAGES, VISIONS, write_language, write_vision

from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig

RESULTS = Path(__file__).parent / "results" / "backbone_grid.md"
CAPTIONS = ["a red cat on the table", "two dogs", "one blue photo of it", "a small cat and one dog"]
COLOURS = [(1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, -1.0)]
QFORMER = QFormerConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    cross_attention_freq=1,
    dropout=0.0,
    attention_dropout=0.0,
    init="none",
    initializer_range=0.1,
)
SEARCHES = {"greedy": 1, "beam": 3}
FALL = 0.95  # the loss must end below this part of its start


@dataclass
class Cell:
    """What came of one pair; `wrong` is empty when all is well."""

    vision: str
    language: str
    start: float = float("nan")
    end: float = float("nan")
    other: float = float("nan")  # the loss with each picture's neighbour
    seconds: float = 0.0
    wrong: str = ""

    @property
    def text(self) -> str:
        if self.wrong:
            return "**failed**"
        return f"{self.start:.2f} → {self.end:.2f} ({self.other:.2f})"


def pictures(size: int) -> torch.Tensor:
    """Four pictures [4, 3, size, size], each of one colour with a little noise."""
    noise = 0.2 * torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.tensor(COLOURS)[:, :, None, None] + noise


def build(cfg: Blip2LLMConfig, seed: int) -> Blip2LLM:
    torch.manual_seed(seed)
    return Blip2LLM.from_config(cfg).eval()


@torch.no_grad()
def loss_of(model: Blip2LLM, samples: dict[str, Any]) -> float:
    return float(model.eval()(samples)["loss"])


def train(model: Blip2LLM, samples: dict[str, Any], steps: int) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(samples)["loss"].backward()
        optimizer.step()


def write(model: Blip2LLM, image: torch.Tensor) -> dict[str, list[str]]:
    options: dict[str, Any] = {"max_new_tokens": 8}
    return {
        name: model.eval().generate({"image": image}, num_beams=beams, **options)
        for name, beams in SEARCHES.items()
    }


def check_cell(cell: Cell, cfg: Blip2LLMConfig, folder: Path, steps: int) -> None:
    """Fill in the cell. Raises AssertionError saying what is not as it should be."""
    image = pictures(cfg.vision.image_size)
    samples = {"image": image, "text_input": CAPTIONS}
    model = build(cfg, seed=0)
    parts = model.identity()
    cell.start = loss_of(model, samples)
    train(model, samples, steps)
    cell.end = loss_of(model, samples)
    cell.other = loss_of(model, {**samples, "image": image.roll(1, 0)})
    require(cell.end < FALL * cell.start, f"the loss goes from {cell.start:.3f} to {cell.end:.3f}")
    require(cell.other > cell.end, f"with other pictures the loss is {cell.other:.3f}")
    require(model.identity() == parts, "frozen weights have changed")
    texts = write(model, image)
    for search, found in texts.items():
        require(len(found) == len(image), f"{search} search wrote {len(found)} texts")

    path = folder / "trained.safetensors"
    save_file({n: t.detach().clone() for n, t in model.trainable_state_dict().items()}, path)
    again = build(replace(cfg, pretrained=str(path)), seed=1)
    again.check_identity(parts)
    require(loss_of(again, samples) == cell.end, "the reloaded checkpoint has another loss")
    require(write(again, image) == texts, "the reloaded checkpoint writes other texts")


def require(good: bool, otherwise: str) -> None:
    if not good:
        raise AssertionError(otherwise)


def run_grid(
    visions: Sequence[str], languages: Sequence[str], steps: int, say: Callable[[Cell], None]
) -> list[Cell]:
    """Every cell; a failure is written down, and the others go on."""
    cells = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        towers = {name: write_vision(name, folder / f"vision{i}") for i, name in enumerate(visions)}
        models = {
            name: write_language(name, folder / f"language{i}") for i, name in enumerate(languages)
        }
        for language, language_config in models.items():
            for vision, vision_config in towers.items():
                cell, began = Cell(vision, language), time.perf_counter()
                cfg = Blip2LLMConfig(
                    vision=vision_config,
                    language=language_config,
                    qformer=QFORMER,
                    num_query_tokens=4,
                )
                try:
                    check_cell(cell, cfg, folder, steps)
                except Exception as error:  # a cell may fail in any way; the table says how
                    first = (str(error).splitlines() or [""])[0]
                    cell.wrong = f"{type(error).__name__}: {first}"
                cell.seconds = time.perf_counter() - began
                cells.append(cell)
                say(cell)
    return cells


def table(cells: Sequence[Cell], visions: Sequence[str], languages: Sequence[str]) -> str:
    """Markdown: a row for each language family, a column for each vision family."""
    found = {(cell.language, cell.vision): cell.text for cell in cells}
    lines = [f"| | {' | '.join(visions)} |", "|---" * (len(visions) + 1) + "|"]
    for language in languages:
        lines.append(f"| {language} | {' | '.join(found[language, v] for v in visions)} |")
    lines += [f"\n{cell.vision} x {cell.language}: {cell.wrong}" for cell in cells if cell.wrong]
    return "\n".join(lines)


def page(cells: Sequence[Cell], args: argparse.Namespace) -> str:
    """The whole file."""
    good = sum(not cell.wrong for cell in cells)
    minutes = sum(cell.seconds for cell in cells) / 60
    return (
        f"# Backbones: {good} of {len(cells)} pairs work\n\n"
        f"Loss on four captioned pictures before → after {args.steps} steps of the bridge alone,\n"
        "in brackets with each picture's neighbour in its place. What else is checked stands in\n"
        "`benchmarks/backbone_grid.py`, which wrote this.\n\n"
        f"{table(cells, args.vision, args.language)}\n\n"
        f"{facts_line(facts(args.threads))}, transformers {transformers.__version__}; "
        f"{minutes:.1f} minutes.\n"
    )


def say(cell: Cell) -> None:
    """One line of progress."""
    print(
        f"{cell.vision:14} x {cell.language:14} {cell.seconds:5.1f} s  {cell.wrong or cell.text}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, families in (("vision", VISIONS), ("language", LANGUAGES)):
        parser.add_argument(
            f"--{name}", nargs="+", choices=families, default=list(families), metavar="FAMILY",
            help=f"of: {', '.join(families)}",
        )  # fmt: skip
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    cells = run_grid(args.vision, args.language, args.steps, say)
    text = page(cells, args)
    print(f"\n{text}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    return int(any(cell.wrong for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
