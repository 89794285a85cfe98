"""What `lavislite score` is given and what it says."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; all but `kind` and `--output` are fields of `Files`."""
    parser.add_argument("kind", help="vqa, ok_vqa, gqa, aok_vqa, caption or nocaps")
    for name, about in (
        ("predictions", "the results, as the server takes them (.json, .json.gz)"),
        ("annotations", "the official file with the answers or captions; for gqa the questions"),
    ):
        parser.add_argument(f"--{name}", required=True, metavar="FILE", help=about)
    for name, about in (
        ("output", "write everything as JSON, each question's score too"),
        ("questions", "vqa, ok_vqa: the question file, to check that the annotations belong to it"),
        ("choices", "gqa: valid and plausible answers"),
        ("scenes", "gqa: scene graphs, for grounding"),
        ("attention", "gqa: attention by question, for grounding"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=about)
    for name, about in (
        ("lemmatize", "vqa: also score lemmatised predictions (ok_vqa does where simplemma is)"),
        ("consistency", "gqa: needs the file with all questions, and predictions for all"),
        ("object-features", "gqa: the attention is on boxes [x0, y0, x1, y1, weight], not cells"),
        ("multiple-choice", "aok_vqa: plain answers are choices, not direct answers"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=about)
    for name, about in (
        ("version", "vqa: the official rule of 2021 (default) or 2017, which LAVIS uses"),
        ("few", "vqa: official (default), or scaled for questions with fewer than four answers"),
    ):
        parser.add_argument(f"--{name}", default=getattr(Files, name), help=about)


@dataclass(frozen=True)
class Files:
    """The files of one result and how to score them; ``lavislite score --help`` explains each."""

    predictions: str
    annotations: str
    questions: str | None = None
    version: str = "2021"
    few: str = "official"
    lemmatize: bool = False
    choices: str | None = None
    scenes: str | None = None
    attention: str | None = None
    object_features: bool = False
    consistency: bool = False
    multiple_choice: bool = False


@dataclass
class Report:
    """What was computed.

    Attributes:
        scores: figure to value; None where it was not computed, `notes` say why.
        groups: heading ("answer type") to group to its value and its size.
        each: question or image id to its own score or scores; only the file gets it.
    """

    kind: str
    scores: dict[str, float | None]
    groups: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    each: dict[str, Any] = field(default_factory=dict)

    def as_dict(self, files: Files) -> dict[str, Any]:
        """Everything, for a JSON file."""
        changed = {
            f.name: getattr(files, f.name)
            for f in fields(files)
            if getattr(files, f.name) != f.default
        }
        groups = {
            heading: {name: {"score": value, "size": size} for name, (value, size) in group.items()}
            for heading, group in self.groups.items()
        }
        return {
            "kind": self.kind,
            "input": changed,
            "scores": self.scores,
            "groups": groups,
            "notes": self.notes,
            "each": self.each,
        }

    def lines(self) -> list[str]:
        """The table to be read."""
        groups = [name for group in self.groups.values() for name in group]
        width = 2 + max(map(len, [*self.scores, *groups, *self.groups]))
        rows = [f"{name:<{width}}{_shown(value):>8}" for name, value in self.scores.items()]
        for heading, group in self.groups.items():
            rows += ["", f"{heading:<{width}}{'':>8}{'number':>9}"]
            rows += [
                f"{name:<{width}}{value:>8.2f}{size:>9,}" for name, (value, size) in group.items()
            ]
        return [*rows, *([""] if self.notes else []), *self.notes]


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0 < value < 1 else f"{value:.2f}"
