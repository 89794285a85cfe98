"""What came out of a run, in one HTML file that needs nothing else, with its pictures beside it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from lavislite.common.io import atomic_write, atomic_write_text
from lavislite.runners import figures
from lavislite.runners.figures import Curve, Theme


def write_report(
    report_dir: Path,
    log: Path,
    metrics: Mapping[str, float],
    examples: Sequence[Mapping[str, Any]],
    title: str,
    config_yaml: str,
    summary: Sequence[Sequence[str]] = (),
) -> Path:
    """Write ``report.html`` and its pictures (``losses, recalls, metrics, examples``, PNG).

    Args:
        report_dir: made when it does not exist.
        log: the run's ``log.jsonl``; may be missing or hold no losses or no evaluations.
        metrics: final ``<dataset>/<split>/<metric>`` values.
        examples: rows with ``id, image`` (path or [h, w, 3] bytes)``, captions`` (``text, score,
            correct``), ``truth, generated, attention``; see `lavislite.tasks.examples`.
        summary: the task's table, header rows included.

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
    for name, draw in drawings.items():
        parts += _drawing(report_dir / f"{name}.png", draw)
    page = figures.example_figure(examples, figures.LIGHT)
    _save(report_dir / "examples.png", page)
    parts += _examples(examples)
    parts += [
        f"<details><summary>Configuration</summary><pre>{escape(config_yaml)}</pre></details>"
    ]
    html = _PAGE.format(title=escape(title), body="\n".join(parts))
    path = report_dir / "report.html"
    atomic_write_text(path, html)
    return path


@dataclass
class History:
    """Curves of a run: training losses, learning rate, and each evaluated metric by its path."""

    train: dict[str, Curve] = field(default_factory=dict)
    lr: Curve = field(default_factory=list)
    evaluated: dict[str, Curve] = field(default_factory=dict)

    def held_out_losses(self) -> dict[str, Curve]:
        return {path: curve for path, curve in self.evaluated.items() if _is_loss(path)}

    def by_split(self) -> dict[str, dict[str, Curve]]:
        """``<dataset>/<split>`` -> metric -> curve."""
        splits: dict[str, dict[str, Curve]] = defaultdict(dict)
        for path, curve in self.evaluated.items():
            split, _, metric = path.rpartition("/")
            splits[split][metric] = curve
        return dict(splits)

    def other_metrics(self) -> dict[str, Curve]:
        """What is neither a loss nor a recall."""
        recall = {split for split, curves in self.by_split().items() if "txt_r1" in curves}
        return {
            path: curve
            for path, curve in self.evaluated.items()
            if not _is_loss(path) and path.rpartition("/")[0] not in recall
        }


def read_log(log: Path) -> History:
    """Curves from the run's log; lines that are not whole records (a crash's last) are passed over.

    A record says ``event`` (or ``kind``) train or eval. Evaluated metrics stand under ``metrics``
    or, by their paths, in the record itself.
    """
    train: dict[str, dict[float, float]] = defaultdict(dict)
    evaluated: dict[str, dict[float, float]] = defaultdict(dict)
    for record in _records(log):
        kind, step = record.get("event", record.get("kind")), record["step"]
        if kind == "train":
            for name, value in _numbers(record):
                if name == "lr" or name.startswith("loss"):
                    train[name][step] = value
        elif kind == "eval":
            nested = record.get("metrics")
            for name, value in _numbers(nested if isinstance(nested, dict) else record):
                if nested is not None or "/" in name:
                    evaluated[name][step] = value
    lr = sorted(train.pop("lr", {}).items())
    # The total first, its parts after it.
    names = sorted(train, key=lambda name: (name != "loss", name))
    return History(
        train={name: sorted(train[name].items()) for name in names},
        lr=lr,
        evaluated={name: sorted(points.items()) for name, points in evaluated.items()},
    )


def _records(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            found.append(record)
    return found


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _is_loss(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith("loss")


# ---- HTML


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


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for row in rows:
        header = not any(_is_number(cell) for cell in row[1:])
        tag = "th" if header else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
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
    """How to read the cards: of a gallery, or of captions and answers that the model wrote."""
    notes = []
    if any(example["captions"] for example in examples):
        notes.append(
            "Best captions of the whole gallery with their scores; true ones are marked ✓."
        )
    elif any(example.get("generated") for example in examples):
        notes.append("What the model says, and a true text that people wrote.")
    else:
        notes.append("Pictures with a true text.")
    if any(example.get("attention") is not None for example in examples):
        notes.append(
            "The second picture is lit where the model looks: the last cross-attention layer, "
            "averaged over heads and queries, stretched from least to most."
        )
    return " ".join(notes)


def _card(example: Mapping[str, Any]) -> str:
    pictures = "".join(
        f"<img alt='{what}' src='{_data(_jpeg(image), 'jpeg')}'>"
        for image, what in zip(figures.example_images(example), ("image", "attention"), strict=True)
        if image is not None
    )
    lines = [
        f"<li class='{'true' if caption['correct'] else ''}'>"
        f"<b>{'✓' if caption['correct'] else ''}</b><i>{caption['score']:.2f}</i>"
        f"<span>{escape(caption['text'])}</span></li>"
        for caption in example["captions"]
    ]
    if example.get("truth") and not any(caption["correct"] for caption in example["captions"]):
        text = escape(example["truth"][0])
        lines.append(f"<li class='true'><b></b><i>true</i><span>{text}</span></li>")
    if example.get("generated"):
        text = escape(example["generated"])
        lines.append(f"<li class='said'><b></b><i>says</i><span>{text}</span></li>")
    name = escape(str(example["id"]))
    return (
        f"<article><div class='pictures'>{pictures}</div>"
        f"<div><small>{name}</small><ul>{''.join(lines)}</ul></div></article>"
    )


def _jpeg(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _data(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #24292f; --soft: #68717c; --line: #d5dae0;
  --card: #f6f8fa; --true: #1c7d5f; --said: #7a4fb8; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #171b21; --ink: #dfe4ea; --soft: #98a2ae;
  --line: #3b434d; --card: #1f252d; --true: #54c6a2; --said: #b394e6; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 0 auto; padding: 1.5rem; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
p, small, summary {{ color: var(--soft); }}
.wide {{ width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ color: var(--soft); font-weight: 600; padding-top: .9rem; }}
details {{ margin-top: 1.2rem; }}
pre {{ background: var(--card); padding: 1rem; overflow-x: auto; font-size: .85rem; }}
article {{ display: flex; flex-wrap: wrap; gap: 1.2rem; background: var(--card); padding: 1rem;
  border-radius: 8px; margin-bottom: .9rem; }}
.pictures {{ display: flex; gap: .5rem; }}
.pictures img {{ width: 150px; height: 150px; object-fit: contain; }}
article > div:last-child {{ flex: 1 1 24rem; }}
ul {{ list-style: none; margin: .2rem 0 0; padding: 0; font-size: .95rem; }}
li {{ display: grid; grid-template-columns: 1.2rem 3.4rem 1fr; }}
li i {{ font-style: normal; color: var(--soft); font-variant-numeric: tabular-nums; }}
li.true span, li.true b {{ color: var(--true); font-weight: 600; }}
li.said span {{ color: var(--said); font-style: italic; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
