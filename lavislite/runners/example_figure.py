"""The report's examples: a picture, where the model looked, what is right and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from lavislite.runners.figures import Theme, png

SHADES = {  # of what an example says, by the kind of line; each has a mark or a word as well
    "true": "#2f9e7c",
    "right": "#2f9e7c",
    "partly": "#b07d1a",
    "wrong": "#cf4444",
    "said": "#9063cd",
}
MARKS = {"right": "✓", "partly": "~", "wrong": "✗"}
LONGEST = 400  # characters of an example's text; a caption may have ten thousand
ROOM = 8  # lines of text beside an example
LINE = 0.073  # height of a line of text beside an example, as a fraction of its picture


def example_figure(examples: Sequence[Mapping[str, Any]], theme: Theme) -> bytes | None:
    """One line per image: the picture, where the model looked (if it is known), what it says."""
    shown = [(row, example_images(row)) for row in examples]
    if not shown:
        return None
    from matplotlib.figure import Figure

    height = 2.45
    looks = any(attended is not None for _, (_, attended) in shown)
    widths = (1, 1, 2.9) if looks else (1, 2.9)
    figure = Figure(
        figsize=(2.35 * sum(widths), height * len(shown)), facecolor=theme.paper, dpi=110
    )
    grid = figure.add_gridspec(
        len(shown), len(widths), width_ratios=widths, left=0.01, right=0.99,
        top=1 - 0.06 / len(shown), bottom=0.06 / len(shown), wspace=0.04, hspace=0.08,
    )  # fmt: skip
    for row, (example, pictures) in enumerate(shown):
        for column, picture in enumerate(pictures if looks else pictures[:1]):
            axis = figure.add_subplot(grid[row, column])
            axis.axis("off")
            if picture is not None:
                axis.imshow(picture)
        axis = figure.add_subplot(grid[row, len(widths) - 1])
        axis.axis("off")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        _lines(axis, example, theme)
    return png(figure)


@dataclass(frozen=True)
class Line:
    """One line beside an example: `kind` colours it (see `SHADES`), mark and label say the same."""

    kind: str
    mark: str
    label: str
    text: str


def example_lines(example: Mapping[str, Any]) -> list[Line]:
    """What is said about an example: the question, captions or the model's text, and the truth."""
    captions = list(example["captions"])
    truth, said = example.get("truth"), example.get("generated")
    lines = [
        Line("true" if c["correct"] else "", "✓" if c["correct"] else "", f"{c['score']:.2f}",
             plain(c["text"]))
        for c in captions
    ]  # fmt: skip
    if example.get("question"):
        kind = verdict_kind(example)
        lines.append(Line("question", "", "asked", plain(example["question"])))
        lines.append(
            Line(kind or "said", MARKS.get(kind, ""), "says", plain(said or "") or "(nothing)")
        )
        if truth:
            lines.append(Line("", "", "people", plain(", ".join(truth))))
        return lines
    if truth and not any(c["correct"] for c in captions):
        shown = truth[:1] if captions else truth[:3]
        lines += [Line("true", "", "true", plain(text)) for text in shown]
    if said:
        lines.append(Line("said", "", "says", plain(said)))
    return lines


def verdict_kind(example: Mapping[str, Any]) -> str:
    """ "right", "partly", "wrong", or "" where an example is neither."""
    return (example.get("verdict") or "").partition(" ")[0]


def example_title(example: Mapping[str, Any]) -> str:
    """The verdict with its mark, and the score, as far as there are any."""
    kind, score = verdict_kind(example), example.get("score")
    words = [f"{MARKS[kind]} {example['verdict']}"] if kind else []
    return "   ".join(words + ([str(score)] if score is not None else []))


def plain(text: Any) -> str:
    """`text` on one line that any file and any font takes, cut where it gets long."""
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    line = "".join(c for c in line if ord(c) >= 32 and not 127 <= ord(c) < 160)
    return line if len(line) <= LONGEST else line[:LONGEST].rstrip() + " …"


def example_images(example: Mapping[str, Any], size: int = 240) -> tuple[Any, Any]:
    """PIL images of the picture and of the attention over it; None where there is none."""
    import numpy as np
    from PIL import Image

    source = example["image"]
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            return None, None
        with Image.open(source) as opened:
            image = opened.convert("RGB")
    else:
        image = Image.fromarray(np.asarray(source, dtype=np.uint8)).convert("RGB")
    scale = size / max(image.size)
    image = image.resize(
        [max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS
    )
    if example.get("attention") is None:
        return image, None
    return image, overlay(image, example["attention"])


def overlay(image: Any, attention: Any) -> Any:
    """The image lit where `attention` [h, w], stretched over all of it, is high; dim elsewhere."""
    import numpy as np
    from PIL import Image

    weights = np.asarray(attention, dtype=np.float32)
    weights = (weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)
    light = Image.fromarray(weights).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(light), 0, 1)[..., None]
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    shadow = 0.3 * (0.3 * pixels + 0.7 * grey) + np.array([8.0, 12.0, 40.0])
    return Image.fromarray((strength * pixels + (1 - strength) * shadow).round().astype(np.uint8))


def _lines(axis: Any, example: Mapping[str, Any], theme: Theme) -> None:
    """Write what is said about an example into [0, 1] x [0, 1]."""
    whole = {"va": "top", "parse_math": False}  # a caption may have two dollars
    name = plain(example["id"])
    axis.text(0, 0.99, _wrapped(name, 90, 1)[0], fontsize=8.5, color=theme.ink, alpha=0.65, **whole)
    y = 0.89
    title = example_title(example)
    if title:
        shade = SHADES.get(verdict_kind(example), theme.ink)
        axis.text(0, y, title, fontsize=9.5, fontweight="bold", color=shade, **whole)
        y -= LINE + 0.03
    lines = example_lines(example)
    wrapped = [_wrapped(line.text, 72, 2) for line in lines]
    if sum(map(len, wrapped)) > ROOM:
        wrapped = [_wrapped(line.text, 72, 1) for line in lines]
    for line, text in zip(lines, wrapped, strict=True):
        style = {"fontsize": 9.5, "color": SHADES.get(line.kind, theme.ink), **whole}
        if line.kind == "said":
            style["fontstyle"] = "italic"
        axis.text(0.0, y, line.mark, **style)
        axis.text(0.115, y, line.label, ha="right", **style)
        weight = "bold" if line.mark or line.kind == "question" else "normal"
        axis.text(0.14, y, "\n".join(text), linespacing=1.15, fontweight=weight, **style)
        y -= LINE * len(text) + 0.018


def _wrapped(text: str, width: int, n_lines: int) -> list[str]:
    lines = wrap(text, width, max_lines=n_lines, placeholder=" …") or [""]
    # One long word alone would leave nothing but the placeholder.
    return [f"{text[: width - 2]} …"] if lines == ["…"] else lines
