"""The report: right curves from the log, one HTML file that stands alone, whatever is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavislite.runners.example_figure import overlay
from lavislite.runners.history import read_log
from lavislite.runners.report import write_report

RECALLS = {
    f"{prefix}{way}_r{k}": 10.0 * k
    for prefix in ("", "itc_", "chance_")
    for way in ("txt", "img")
    for k in (1, 5, 10)
}


def write_log(path: Path, records: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def full_log(path: Path) -> Path:
    recalls = {f"d/val/{name}": value for name, value in RECALLS.items()}
    return write_log(
        path,
        [
            {"event": "start", "step": 0, "versions": {"torch": "2"}},
            {"event": "eval", "step": 0, **recalls, "d/val/loss_itc": 3.0, "a/val/acc_mean": 9.0},
            {"event": "train", "step": 10, "lr": 1e-4, "loss_itc": 2.0, "loss": 5.0, "epoch": 0.1},
            {"event": "train", "step": 20, "lr": 5e-5, "loss_itc": None, "loss": 4.0, "epoch": 0.2},
            {"event": "eval", "step": 20, **recalls, "d/val/loss_itc": 1.0, "a/val/acc_mean": 50.0},
        ],
    )


def example(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "scene.jpg"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    captions = [
        {"text": "a <red> room", "score": 2.5, "correct": True},
        {"text": "a blue room", "score": -1.0, "correct": False},
    ]
    row = {
        "id": "scene 1",
        "image": str(path),
        "captions": captions,
        "truth": ["a <red> room"],
        "generated": "a red thing",
        "attention": np.eye(4, dtype=np.float32),
    }
    return row | changes


def test_curves_come_from_the_log(tmp_path: Path) -> None:
    history = read_log(full_log(tmp_path / "log.jsonl"))
    assert history.train == {"loss": [(10, 5.0), (20, 4.0)], "loss_itc": [(10, 2.0)]}
    assert next(iter(history.train)) == "loss"
    assert history.lr == [(10, 1e-4), (20, 5e-5)]
    assert history.held_out_losses() == {"d/val/loss_itc": [(0, 3.0), (20, 1.0)]}
    assert history.by_split()["d/val"]["chance_img_r5"] == [(0, 50.0), (20, 50.0)]
    assert history.other_metrics() == {"a/val/acc_mean": [(0, 9.0), (20, 50.0)]}


def test_nested_metrics_are_read_too(tmp_path: Path) -> None:
    records = [
        {"kind": "train", "step": 1, "loss": 2.0},
        {"kind": "eval", "step": 1, "metrics": {"d/val/r_mean": 30.0}},
    ]
    history = read_log(write_log(tmp_path / "log.jsonl", records))
    assert history.evaluated == {"d/val/r_mean": [(1, 30.0)]}


def test_a_line_cut_short_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    records = [{"event": "train", "step": 1, "loss": 2.0}]
    log = write_log(tmp_path / "log.jsonl", records, tail='{"event": "train", "st')
    assert read_log(log).train == {"loss": [(1, 2.0)]}


def test_a_full_report_is_one_file_that_stands_alone(tmp_path: Path) -> None:
    out = tmp_path / "report"
    page = write_report(
        out,
        full_log(tmp_path / "log.jsonl"),
        {"d/val/r_mean": 53.333},
        [example(tmp_path)],
        "Stage 1 <first try>",
        "run:\n  task: x & y\n",
        summary=[["d/val", "TR@1"], ["re-ranked", "61.0"]],
    )
    html = page.read_text()
    sources = re.findall(r"src(?:set)?='([^']*)'", html)
    assert len(sources) == 8  # losses, recalls and metrics in two themes; picture and attention
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in html
    assert "<h1>Stage 1 &lt;first try&gt;</h1>" in html
    assert "<th>TR@1</th>" in html
    assert "<td>61.0</td>" in html
    assert "53.33" in html
    assert "x &amp; y" in html
    assert "<li class='true'><b>✓</b><i>2.50</i><span dir='auto'>a &lt;red&gt; room</span>" in html
    assert "a red thing" in html
    for name in ("losses", "recalls", "metrics", "examples"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 800


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "captions of the whole gallery", "What the model says"),
        ({"captions": []}, "What the model says", "gallery"),
        ({"captions": [], "generated": None}, "Pictures with a true text", "says"),
        ({"captions": [], "attention": None}, "What the model says", "lit where"),
    ],
)
def test_the_examples_are_explained_as_what_they_are(
    tmp_path: Path, changes: dict[str, Any], said: str, unsaid: str
) -> None:
    page = write_report(
        tmp_path, tmp_path / "none", {}, [example(tmp_path, **changes)], "title", ""
    ).read_text()
    note = page.partition("<h2>Examples</h2>")[2].partition("</p>")[0]
    assert said in note
    assert unsaid not in note


@pytest.mark.parametrize("log", ["missing", "empty", "start_only"])
def test_a_run_without_losses_recalls_or_examples_has_a_report(tmp_path: Path, log: str) -> None:
    path = tmp_path / "log.jsonl"
    if log != "missing":
        write_log(path, [{"event": "start", "step": 0}] if log == "start_only" else [])
    page = write_report(tmp_path / "report", path, {}, [], "Nothing", "")
    assert "Nothing was evaluated" in page.read_text()
    assert list(page.parent.glob("*.png")) == []


def test_pictures_of_an_earlier_report_do_not_survive(tmp_path: Path) -> None:
    out, log = tmp_path / "report", full_log(tmp_path / "log.jsonl")
    write_report(out, log, {}, [], "first", "")
    assert (out / "losses.png").exists()
    write_report(out, tmp_path / "other.jsonl", {}, [], "second", "")
    assert not (out / "losses.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": None, "generated": None},
        {"image": np.zeros((8, 8, 3), dtype=np.uint8)},
        {"image": "gone.jpg"},
        {"captions": []},
        {"attention": np.full((3, 3), 0.25)},
    ],
)
def test_an_example_may_lack_anything_but_its_name(tmp_path: Path, changes: dict) -> None:
    rows = [example(tmp_path, **changes)]
    page = write_report(tmp_path / "report", tmp_path / "log.jsonl", {}, rows, "run", "")
    assert "scene 1" in page.read_text()
    assert "a &lt;red&gt; room" in page.read_text()  # as a caption or as the truth
    assert (page.parent / "examples.png").exists()


def test_the_attended_place_keeps_its_light_and_the_rest_is_dim() -> None:
    attention = np.zeros((4, 4))
    attention[0, 3] = 1.0  # row 0, column 3: the upper right
    lit = np.asarray(overlay(Image.new("RGB", (80, 80), (250, 250, 250)), attention)).mean(axis=2)
    assert lit[8, 72] > 200
    assert lit[72, 8] < 120


def test_reports_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(tmp_path / "report", full_log(tmp_path / "log.jsonl"), {}, [], "run", "")
    assert dict(mpl.rcParams) == before


def question(folder: Path, **changes: Any) -> dict[str, Any]:
    row = {"id": "question 7", "question": "what <colour>?", "captions": [], "attention": None}
    answer = {"generated": "blue", "truth": ["red (7)", "pink"], "verdict": "wrong", "score": "0 %"}
    return example(folder) | row | answer | changes


@pytest.mark.parametrize(
    ("verdict", "kind", "mark"),
    [("right", "right", "✓"), ("partly right", "partly", "~"), ("wrong", "wrong", "✗")],
)
def test_right_and_wrong_are_told_by_colour_mark_and_word(
    tmp_path: Path, verdict: str, kind: str, mark: str
) -> None:
    rows = [question(tmp_path, verdict=verdict, score="30 %")]
    html = write_report(tmp_path, tmp_path / "none", {}, rows, "t", "").read_text()
    assert f"<strong class='{kind}'>{mark} {verdict}   30 %</strong>" in html
    assert f"<li class='{kind}'><b>{mark}</b><i>says</i><span dir='auto'>blue</span></li>" in html
    assert "<i>asked</i><span dir='auto'>what &lt;colour&gt;?</span>" in html
    assert "<i>people</i><span dir='auto'>red (7), pink</span>" in html
    assert html.count("<img alt='image'") == 1
    assert f"Shown are 1 {verdict}: chosen to see both" in html


def test_nobody_judges_where_there_are_no_answers(tmp_path: Path) -> None:
    rows = [question(tmp_path, verdict=None, score=None, truth=[], generated="")]
    html = write_report(tmp_path, tmp_path / "none", {}, rows, "t", "").read_text()
    card = html.partition("<article")[2]
    assert "<strong" not in card
    assert "(nothing)" in card
    assert "Shown are" not in html


def test_the_page_of_examples_has_a_column_for_attention_only_if_there_is_any(
    tmp_path: Path,
) -> None:
    def ink(rows: list[dict[str, Any]]) -> np.ndarray:
        """Whether anything is drawn in each column of the picture."""
        write_report(tmp_path, tmp_path / "none", {}, rows, "t", "")
        pixels = np.asarray(Image.open(tmp_path / "examples.png").convert("RGB"))
        return (pixels != 255).any(axis=(0, 2))

    def widest_gap(columns: np.ndarray) -> int:
        drawn = np.flatnonzero(columns)
        return int(np.diff(drawn).max())

    alone = ink([question(tmp_path)])
    looked_at = ink([question(tmp_path, attention=np.eye(4))])
    assert len(alone) < len(looked_at)
    assert widest_gap(alone) < 80
    assert widest_gap(looked_at) < 80


def test_accuracies_by_type_are_tables_with_the_best_first(tmp_path: Path) -> None:
    types = {
        "d/val": {
            "overall": 50.0,
            "perQuestionType": {"is it": 40.0, "what <color>": 75.0},
            "perAnswerType": {},
            "official": {"accuracy": 3.0, "binary": None},
        }
    }
    html = write_report(tmp_path, tmp_path / "x", {}, [], "t", "", types=types).read_text()
    table = html.partition("<summary>d/val by question type</summary>")[2].partition("</table>")[0]
    assert re.findall(r"<td>([^<]*)</td>", table) == ["what &lt;color&gt;", "75.0", "is it", "40.0"]
    assert "answer type" not in html
    assert "official" not in html
