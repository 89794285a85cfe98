"""What came out of a run, in one HTML file that needs nothing else, with its pictures beside it."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lavislite.common.io import atomic_write, atomic_write_text
from lavislite.runners import figures
from lavislite.runners.example_figure import (
    example_figure,
    example_images,
    example_lines,
    example_title,
    plain,
    verdict_kind,
)
from lavislite.runners.figures import Theme
from lavislite.runners.history import read_log
from lavislite.runners.report_page import PAGE


def write_report(
    report_dir: Path,
    log: Path,
    metrics: Mapping[str, float],
    examples: Sequence[Mapping[str, Any]],
    title: str,
    config_yaml: str,
    summary: Sequence[Sequence[str]] = (),
    types: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``report.html`` and its pictures (``losses, recalls, metrics, examples``, PNG).

    Args:
        report_dir: made when it does not exist.
        log: the run's ``log.jsonl``; may be missing or hold no losses or no evaluations.
        metrics: final ``<dataset>/<split>/<metric>`` values.
        examples: rows with ``id, image`` (path or [h, w, 3] bytes)``, captions`` (``text, score,
            correct``), ``truth, generated, attention``, and if they are known ``question, verdict``
            ("right", "partly right" or "wrong") and ``score`` (in words); see
            `lavislite.tasks.examples`.
        summary: the task's table, header rows included.
        types: split -> kind of types -> type -> accuracy; what is nothing of the sort is left out.

    Returns:
        The path of the HTML file.
    """
    report_dir.mkdir(parents=True, exist_ok=True)
    history = read_log(log)
    splits = history.by_split()
    drawings: dict[str, Callable[[Theme], bytes | None]] = {
        "losses": lambda theme: figures.loss_figure(
            history.train, history.held_out_losses(), history.lr, theme
        ),
        "recalls": lambda theme: figures.recall_figure(splits, theme),
        "metrics": lambda theme: figures.metric_figure(history.other_metrics(), theme),
    }
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += _results(metrics, summary)
    parts += _by_type(types or {})
    for name, draw in drawings.items():
        parts += _drawing(report_dir / f"{name}.png", draw)
    page = example_figure(examples, figures.LIGHT)
    _save(report_dir / "examples.png", page)
    parts += _examples(examples)
    parts += [
        f"<details><summary>Configuration</summary><pre>{escape(config_yaml)}</pre></details>"
    ]
    html = PAGE.format(title=escape(title), body="\n".join(parts))
    path = report_dir / "report.html"
    atomic_write_text(path, html)
    return path


def _results(metrics: Mapping[str, float], summary: Sequence[Sequence[str]]) -> list[str]:
    if not metrics:
        return ["<p>Nothing was evaluated.</p>"]
    rows = [["metric", "value"], *([name, f"{value:.4g}"] for name, value in metrics.items())]
    everything = _table(rows)
    if not summary:
        return ["<h2>Results</h2>", everything]
    return [
        "<h2>Results</h2>",
        _table(summary),
        f"<details><summary>All metrics</summary>{everything}</details>",
    ]


def _by_type(types: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table for each split and kind of types, folded up; the best come first."""
    parts = []
    for split, kinds in types.items():
        for kind, values in kinds.items():
            if not isinstance(values, Mapping) or not values:
                continue
            if not all(isinstance(value, (int, float)) for value in values.values()):
                continue
            ordered = sorted(values.items(), key=lambda item: -item[1])
            # perQuestionType -> question type
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.removeprefix("per")).lower()
            rows = [[words, "accuracy %"], *([name, f"{value:.1f}"] for name, value in ordered)]
            title = escape(f"{split} by {words}")
            parts.append(f"<details><summary>{title}</summary>{_table(rows)}</details>")
    return parts


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for row in rows:
        header = not any(_is_number(cell) for cell in row[1:])
        tag = "th" if header else "td"
        lines.append(
            "<tr>" + "".join(f"<{tag}>{escape(plain(cell))}</{tag}>" for cell in row) + "</tr>"
        )
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _drawing(path: Path, draw: Callable[[Theme], bytes | None]) -> list[str]:
    """Save the light drawing; show the one that suits the reader's screen."""
    light, dark = draw(figures.LIGHT), draw(figures.DARK)
    _save(path, light)
    if light is None or dark is None:
        return []
    return [
        f"<h2>{path.stem.capitalize()}</h2><picture>"
        f"<source srcset='{_data(dark)}' media='(prefers-color-scheme: dark)'>"
        f"<img class='wide' alt='{path.stem} over training steps' src='{_data(light)}'></picture>"
    ]


def _save(path: Path, png: bytes | None) -> None:
    """An old picture must not survive beside a new report that has none."""
    path.unlink(missing_ok=True)
    if png is not None:

        def write(part: Path) -> None:
            part.write_bytes(png)

        atomic_write(path, write)


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    if not examples:
        return []
    return ["<h2>Examples</h2>", f"<p>{_note(examples)}</p>", *map(_card, examples)]


def _note(examples: Sequence[Mapping[str, Any]]) -> str:
    """How to read the cards: of a gallery, of questions, or of captions that the model wrote."""
    notes = []
    if any(example["captions"] for example in examples):
        notes.append(
            "Best captions of the whole gallery with their scores; true ones are marked ✓."
        )
    elif any(example.get("question") for example in examples):
        notes.append("A question, what the model says, and what people say (and how many).")
    elif any(example.get("generated") for example in examples):
        notes.append("What the model says, and a true text that people wrote.")
    else:
        notes.append("Pictures with a true text.")
    counts = Counter(example.get("verdict") for example in examples)
    told = [f"{counts[word]} {word}" for word in ("right", "partly right", "wrong") if counts[word]]
    if told:
        notes.append(
            f"Shown are {', '.join(told)}: chosen to see both, so their share says nothing."
        )
    if any(example.get("attention") is not None for example in examples):
        notes.append(
            "The second picture is lit where the model looks: the last cross-attention layer, "
            "averaged over heads and queries, stretched from least to most."
        )
    return " ".join(notes)


def _card(example: Mapping[str, Any]) -> str:
    pictures = "".join(
        f"<img alt='{what}' src='{_data(_jpeg(image), 'jpeg')}'>"
        for image, what in zip(example_images(example), ("image", "attention"), strict=True)
        if image is not None
    )
    lines = [
        f"<li class='{line.kind}'><b>{line.mark}</b><i>{escape(line.label)}</i>"
        f"<span dir='auto'>{escape(line.text)}</span></li>"
        for line in example_lines(example)
    ]
    name, title = escape(plain(example["id"])), escape(example_title(example))
    kind = verdict_kind(example)
    badge = f"<strong class='{kind}'>{title}</strong>" if title else ""
    return (
        f"<article class='{kind}'><div class='pictures'>{pictures}</div>"
        f"<div><small>{name}</small>{badge}<ul>{''.join(lines)}</ul></div></article>"
    )


def _jpeg(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _data(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
