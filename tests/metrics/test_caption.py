"""Caption scores are the official ones; what cannot be scored is refused with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lavislite.metrics import java
from lavislite.metrics.caption import CaptionScores, caption_scores, captions_by_id
from lavislite.metrics.ptb import tokenize

from .official_files import official

MALFORMED = official("caption/malformed_cases.json")
REFUSED = {
    "missing id, all images evaluated": "1 images have no caption",
    "missing id, restricted to result ids (demo line)": "1 images have no caption",
    "extra unknown id": "belong to no image",
    "duplicate id": "two captions",
    "empty results": "no captions to score",
    "None caption": "caption of image '2' is None",
    "missing caption key": "Row 1 needs",
    "not a list": "list of rows, got dict",
}
# The original gives the next image this caption's tail, takes an id for another or dies.
BETTER = {
    "string image_id": "good",
    "carriage return inside": "good",
    "U+2028 inside": "good",
    "form feed inside": "good",
    "vertical tab inside": "good",
    "lone surrogate": "good",
}
REFERENCES = {"a": ["A dog runs.", "The dog is running."], "b": ["A cat sat."]}
PREDICTIONS = {"a": "a dog runs", "b": "a cat"}


@pytest.fixture(scope="module")
def fakecap() -> dict[str, Any]:
    references: dict[str, list[str]] = {}
    for row in official("caption/fakecap_refs_coco.json")["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    return {
        "references": references,
        "predictions": captions_by_id(official("caption/captions_val2014_fakecap_results.json")),
        "scores": official("expected_scores.json")["caption/fakecap"]["scores"],
        "per_image": official("caption/fakecap_per_image.json")["per_image"],
    }


@pytest.fixture(scope="module")
def scores(fakecap: dict[str, Any]) -> CaptionScores:
    return caption_scores(fakecap["predictions"], fakecap["references"], java=False)


def test_fakecap_scores_are_the_official_ones(
    fakecap: dict[str, Any], scores: CaptionScores
) -> None:
    expected = {k: v for k, v in fakecap["scores"].items() if k != "METEOR"}
    assert scores.overall == pytest.approx(expected, abs=1e-9)
    for metric in expected:
        assert scores.per_image[metric] == pytest.approx(fakecap["per_image"][metric], abs=1e-8)


def test_domains_weighted_by_size_give_the_overall_cider(scores: CaptionScores) -> None:
    ids = list(scores.per_image["CIDEr"])
    parts = [scores.mean("CIDEr", ids[:300]) * 300, scores.mean("CIDEr", ids[300:]) * 700]
    assert sum(parts) / 1000 == pytest.approx(scores.overall["CIDEr"])


@pytest.mark.parametrize(("metric", "ids"), [("Bleu_4", ["a"]), ("SPICE", ["a"]), ("CIDEr", [])])
def test_a_mean_that_means_nothing_is_refused(metric: str, ids: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{metric}"):
        caption_scores(PREDICTIONS, REFERENCES, java=False).mean(metric, ids)


@pytest.mark.parametrize("name", MALFORMED["cases"])
def test_malformed_results(name: str) -> None:
    references: dict[str, list[str]] = {}
    for row in MALFORMED["annotations"]["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    case = MALFORMED["cases"][name]
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            caption_scores(captions_by_id(case["results"]), references, java=False)
        return
    found = caption_scores(captions_by_id(case["results"]), references, java=False).overall
    expected = MALFORMED["cases"][BETTER.get(name, name)]["result"]
    assert [found[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected["Bleu"], abs=1e-5)
    assert found["ROUGE_L"] == pytest.approx(expected["ROUGE_L"], abs=1e-5)
    assert found["CIDEr"] == pytest.approx(expected["CIDEr"], abs=1e-5)


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ({1: "a"}, {1: ["a"]}, "ids are strings, got 1"),
        ({"1": "a"}, {"1": []}, "Image '1' needs a list of references"),
        ({"1": "a"}, {"1": "a dog"}, "Image '1' needs a list of references"),
        ({"1": "a"}, {"1": [None]}, "reference of image '1' is None"),
        ({"1": "a"}, {"1": ["..."]}, "contains a word"),
        ({"1": 5}, {"1": ["a"]}, "caption of image '1' is 5"),
    ],
)
def test_input_that_cannot_be_scored(predictions: Any, references: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        caption_scores(predictions, references, java=False)


def test_one_image_has_no_cider_and_an_empty_caption_scores_nothing() -> None:
    assert caption_scores({"x": "a dog"}, {"x": ["a dog"]}, java=False).overall["CIDEr"] == 0
    empty = caption_scores({"a": "", "b": "!"}, REFERENCES, java=False).overall
    assert empty == pytest.approx(dict.fromkeys(empty, 0), abs=1e-9)


def test_scores_do_not_depend_on_the_order_of_the_predictions() -> None:
    back = dict(reversed(PREDICTIONS.items()))
    there = caption_scores(PREDICTIONS, REFERENCES, java=False)
    assert caption_scores(back, REFERENCES, java=False) == there


def test_without_java_the_rest_is_scored_and_the_reason_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    found = caption_scores(PREDICTIONS, REFERENCES)
    assert set(found.overall) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    assert "no Java" in found.skipped["METEOR"]
    assert "no Java" in found.skipped["SPICE"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("program", "says"),
    [("echo 'out of memory' >&2; exit 1", "out of memory"), ("exec sleep 60", "after 1 s")],
)
def test_a_java_that_crashes_or_hangs_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(java.Unavailable, match=says):
        java.meteor({"a": "a dog"}, {"a": ["a dog"]}, timeout=1.0)


def test_scoring_without_java_starts_no_process() -> None:
    code = (
        "import subprocess; subprocess.Popen = None\n"
        "from lavislite.metrics.caption import caption_scores\n"
        "caption_scores({'a': 'a dog'}, {'a': ['a dog']}, java=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.java
def test_meteor_is_the_official_one(fakecap: dict[str, Any]) -> None:
    ids = list(fakecap["references"])
    hypotheses = dict(zip(ids, tokenize([fakecap["predictions"][i] for i in ids]), strict=True))
    references = {i: tokenize(fakecap["references"][i]) for i in ids}
    overall, each = java.meteor(hypotheses, references)
    assert overall == pytest.approx(0.195255, abs=1e-6)
    assert each == pytest.approx(fakecap["per_image"]["METEOR"], abs=1e-8)


@pytest.mark.java
def test_spice_is_scored_or_says_why_not() -> None:
    found = caption_scores(PREDICTIONS, REFERENCES)
    assert "METEOR" in found.overall
    assert "SPICE" in found.overall or "SPICE" in found.skipped
