"""Texts as people really write them go through scoring, rows, files and report unharmed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.runners.evaluation import evaluate_datasets, read_accuracies
from lavislite.runners.report import write_report
from lavislite.tasks.captioning import CaptioningConfig, CaptioningTask
from lavislite.tasks.retrieval import RetrievalConfig, RetrievalTask
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig

from .caption_parts import Captions, Writer
from .fakes import FakeRanker, FakeRetrieval
from .question_parts import Answerer, Questions

ODD = [
    "a cat\u2028on a mat",
    "two dogs\rin the snow\x0cat night",
    "a \U0001f600 face \U0001f468\u200d\U0001f469\u200d\U0001f467 by the lake",
    "\u0643\u0644\u0628 \u0623\u0633\u0648\u062f \u0639\u0644\u0649 \u0627\u0644\u0639\u0634\u0628",
    "word " * 2000,
    "y" * 10_000,
    "it costs $5 and $6 <b>&amp;</b>\x85now",
    "lone \ud83d surrogate",
    "",
]


class Copying(Writer):
    """Says what people say, letter by letter."""

    def generate(self, samples: dict[str, Any], **_: Any) -> list[str]:
        return [ODD[int(image[0, 0, 0])] for image in samples["image"]]


def pictures(folder: Path) -> Captions:
    data = Captions([str(k) for k in range(len(ODD))])
    data._pictures._references = [[text, f"number {k}"] for k, text in enumerate(ODD)]
    data._pictures.image_paths = [folder / f"{k}.png" for k in range(len(ODD))]
    for k, path in enumerate(data._pictures.image_paths):
        Image.new("RGB", (8, 8), (k, k, k)).save(path)
    return data


def run(task: Any, model: Any, data: Any, folder: Path) -> tuple[dict[str, float], list[Any], str]:
    """Metrics, the rows as read from their file, and the report."""
    results = folder / "results.jsonl"
    metrics = evaluate_datasets(
        task, model, [data], EvalContext(batch_size=3), lambda _: results
    )  # fmt: skip
    content = results.read_text("utf-8")
    assert len(content.splitlines()) == content.count("\n")  # a line is a line for every reader
    rows = [json.loads(line) for line in content.splitlines()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = task.examples(model, data, EvalContext(), 20)
        types = read_accuracies([data], lambda _: results)
        page = write_report(folder, folder / "none", metrics, shown, "odd", "", types=types)
    assert (folder / "examples.png").exists()
    return metrics, rows, page.read_text("utf-8")


def test_each_caption_is_scored_against_its_own(tmp_path: Path) -> None:
    task, data = CaptioningTask(CaptioningConfig(java_metrics=False)), pictures(tmp_path)
    metrics, rows, html = run(task, Copying(), data, tmp_path)
    assert [row["caption"] for row in rows] == ODD
    assert [row["references"][0] for row in rows] == ODD
    # A shift by one anywhere would score a picture against its neighbour.
    assert all(row["ROUGE_L"] == pytest.approx(1.0) for row in rows[:-1])
    assert metrics["fake/val/CIDEr"] == pytest.approx(sum(r["CIDEr"] for r in rows) / len(rows))
    server = json.loads((tmp_path / "results_captions.json").read_text("utf-8"))
    assert server[3] == {"image_id": 3, "caption": ODD[3]}
    assert ODD[3] in html
    assert "a cat on a mat" in html
    assert "$5 and $6 &lt;b&gt;" in html
    assert "y" * 500 not in html  # long texts are cut where they are only shown


def test_questions_and_answers(tmp_path: Path) -> None:
    class Asked(Questions):
        evaluation = "vqa"

        def __len__(self) -> int:
            return len(ODD)

        def annotation(self, i: int) -> dict[str, Any]:
            known = {"question": ODD[i] or "?", "answers": [ODD[i]] * 10}
            return {**super().annotation(i), **known, "question_type": ODD[i]}

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {**super().__getitem__(i), "text_input": ODD[i] or "?"}

    class Echo(Answerer):
        def predict_answers(self, samples: dict[str, Any], **_: Any) -> list[str]:
            return ["" if question == "?" else question for question in samples["question"]]

    metrics, rows, html = run(VQATask(VQAConfig()), Echo(), Asked(), tmp_path)
    assert [row["prediction"] for row in rows] == ODD
    assert metrics["questions/val/acc"] == 100.0
    assert "(nothing)" in html
    assert "questions/val by question type" in html


def test_a_gallery(tmp_path: Path) -> None:
    import torch

    class Gallery(FakeRetrieval):
        def __init__(self) -> None:
            super().__init__([1] * len(ODD))
            self.texts = [f"text {k} {text}" for k, text in enumerate(ODD)]

    n = len(ODD)
    model = FakeRanker(torch.eye(n)[None], torch.eye(n))
    task = RetrievalTask(RetrievalConfig())
    metrics, rows, html = run(task, model, Gallery(), tmp_path)
    assert metrics["fake/test/r_mean"] == 100.0
    assert [row["text"] for row in rows[n:]] == Gallery().texts
    assert ODD[3] in html


def test_results_are_the_same_for_any_batch_size(tmp_path: Path) -> None:
    def found(size: int) -> EvalResult:
        task = CaptioningTask(CaptioningConfig(java_metrics=False))
        return task.evaluate(Copying(), pictures(tmp_path), EvalContext(batch_size=size))

    assert found(1) == found(3) == found(64)
