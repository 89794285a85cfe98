"""The report's pictures. Matplotlib through its objects only: no global figure, no display."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Curve = list[tuple[float, float]]  # (step, value), by step
COLOURS = ("#3b7dd8", "#e07b39", "#2f9e7c", "#9063cd", "#cf4f76", "#8a8f2b")
RECALL_AT = (1, 5, 10)
LEGEND_INSIDE = 12  # curves


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    faint: str


LIGHT = Theme(paper="#ffffff", ink="#24292f", faint="#d5dae0")
DARK = Theme(paper="#171b21", ink="#dfe4ea", faint="#3b434d")


def loss_figure(
    train: Mapping[str, Curve], held_out: Mapping[str, Curve], lr: Curve, theme: Theme
) -> bytes | None:
    """Training losses as lines, held-out losses as dots on dashes, learning rate beside them."""
    if not train and not held_out:
        return None
    figure, axes = _figure(theme, 2 if lr else 1, widths=(2.2, 1) if lr else (1,))
    colours = _colours([*train, *(name.rsplit("/", 1)[-1] for name in held_out)])
    for name, curve in train.items():
        _line(axes[0], curve, colours[name], name)
    for path, curve in held_out.items():
        colour = colours[path.rsplit("/", 1)[-1]]
        _plot(axes[0], curve, color=colour, linestyle="--", marker="o", markersize=4, label=path)
    _finish(axes[0], theme, "Losses", legend=True)
    if lr:
        _plot(axes[1], lr, color=theme.ink, linewidth=1.6)
        axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        axes[1].yaxis.get_offset_text().set(color=theme.ink, fontsize=9)
        axes[1].set_ylim(bottom=0)
        _finish(axes[1], theme, "Learning rate")
    return png(figure)


def recall_figure(splits: Mapping[str, Mapping[str, Curve]], theme: Theme) -> bytes | None:
    """Per split: captions found from images, and images found from captions, over the steps.

    Args:
        splits: ``<dataset>/<split>`` -> metric -> curve; those without recalls are left out.
    """
    found = {name: curves for name, curves in splits.items() if "txt_r1" in curves}
    if not found:
        return None
    figure, axes = _figure(theme, 2, rows=len(found))
    for row, (split, curves) in enumerate(found.items()):
        for column, (way, title) in enumerate((("txt", "image → text"), ("img", "text → image"))):
            axis = axes[2 * row + column]
            for k, colour in zip(RECALL_AT, COLOURS, strict=False):
                name = f"{way}_r{k}"
                style = {"color": colour, "marker": "o", "markersize": 4}
                _plot(axis, curves.get(name, []), label=f"R@{k}", linewidth=2, **style)
                if curves.get(f"itc_{name}") != curves.get(name):
                    _plot(axis, curves.get(f"itc_{name}", []), linestyle="--", alpha=0.7, **style)
                chance = curves.get(f"chance_{name}", [])
                if chance:
                    axis.axhline(chance[-1][1], color=colour, linestyle=":", linewidth=1.3)
            axis.set_ylim(-2, 102)
            _finish(axis, theme, f"{split}   {title}", ylabel="recall %", legend=column == 0)
    note = "solid: with re-ranking    dashed: ITC only    dotted: chance"
    figure.supxlabel(note, fontsize=9, color=theme.ink)
    return png(figure)


def metric_figure(curves: Mapping[str, Curve], theme: Theme) -> bytes | None:
    """All other metrics in one panel; None when there is nothing to see."""
    if not curves:
        return None
    figure, axes = _figure(theme, 1)
    colours = _colours(curves)
    for name, curve in curves.items():
        _plot(axes[0], curve, color=colours[name], marker="o", markersize=4, label=name)
    _finish(axes[0], theme, "Metrics", legend=True)
    return png(figure)


def _figure(
    theme: Theme, columns: int, rows: int = 1, widths: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(10.5, 3.7 * rows), facecolor=theme.paper, layout="constrained", dpi=110
    )
    grid = figure.add_gridspec(rows, columns, width_ratios=widths)
    return figure, [figure.add_subplot(grid[r, c]) for r in range(rows) for c in range(columns)]


def _plot(axis: Any, curve: Curve, **style: Any) -> None:
    if curve:
        axis.plot([step for step, _ in curve], [value for _, value in curve], **style)


def _line(axis: Any, curve: Curve, colour: str, label: str, smooth_from: int = 80) -> None:
    """A long noisy curve is drawn faint under its running mean."""
    if len(curve) < smooth_from:
        _plot(axis, curve, color=colour, label=label, linewidth=1.8)
        return
    _plot(axis, curve, color=colour, alpha=0.3, linewidth=0.8)
    reach = max(2, len(curve) // 60)  # a centred window: a trailing one would show the past
    values = [value for _, value in curve]
    means = [
        sum(values[max(0, i - r) : i + r + 1]) / len(values[max(0, i - r) : i + r + 1])
        for i in range(len(values))
        for r in [min(reach, i, len(values) - 1 - i)]
    ]
    smooth = [(step, mean) for (step, _), mean in zip(curve, means, strict=True)]
    _plot(axis, smooth, color=colour, label=label, linewidth=1.8)


def _colours(names: Any) -> dict[str, str]:
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def _finish(axis: Any, theme: Theme, title: str, *, ylabel: str = "", legend: bool = False) -> None:
    axis.set_facecolor(theme.paper)
    axis.set_title(title, fontsize=11, color=theme.ink, loc="left")
    axis.set_xlabel("step", fontsize=9.5, color=theme.ink)
    axis.set_ylabel(ylabel, fontsize=9.5, color=theme.ink)
    axis.tick_params(colors=theme.ink, labelsize=9, length=3)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    if legend and axis.get_legend_handles_labels()[0]:
        _legend(axis, theme)


def _legend(axis: Any, theme: Theme) -> None:
    """Beside the curves; below them, in a figure that grows, where it would cover them."""
    handles, labels = axis.get_legend_handles_labels()
    style = {"fontsize": 8.5, "labelcolor": theme.ink, "facecolor": theme.paper}
    style |= {"framealpha": 0.8, "edgecolor": theme.faint}
    if len(labels) <= LEGEND_INSIDE:
        axis.legend(**style)
        return
    figure = axis.figure
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.6 + 0.07 * max(map(len, labels)))))
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **style)


def png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # the font has no emoji: boxes stand for them
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
