"""``lavislite score`` gives the official figures, and refuses files that do not fit together."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lavislite.cli import main

EVAL = Path(__file__).parent / "data" / "eval"
VQA = {
    "predictions": EVAL / "vqa/textvqa_val1000_results.json.gz",
    "annotations": EVAL / "vqa/textvqa_val1000_annotations.json.gz",
    "questions": EVAL / "vqa/textvqa_val1000_questions.json.gz",
}
GQA = {
    "predictions": EVAL / "gqa/sub_predictions.json.gz",
    "annotations": EVAL / "gqa/sub_questions.json.gz",
    "choices": EVAL / "gqa/sub_choices.json.gz",
}
CAPTIONS = {
    "images": [
        {"id": 1, "domain": "in-domain"},
        {"id": 2, "domain": "out-domain"},
        {"id": 3, "domain": "out-domain"},
    ],
    "annotations": [
        {"image_id": 1, "id": 1, "caption": "A dog runs in the park."},
        {"image_id": 2, "id": 2, "caption": "An accordion on a chair."},
        {"image_id": 3, "id": 3, "caption": "Two harps stand in a room."},
    ],
}
CAPTION_RESULTS = [
    {"image_id": 1, "caption": "a dog runs in the park"},
    {"image_id": 2, "caption": "a red chair"},
    {"image_id": 3, "caption": "two harps stand in the park"},
]


@pytest.fixture(autouse=True)
def _without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)


def expected(part: str) -> dict[str, Any]:
    return json.loads((EVAL / "expected_scores.json").read_text())[part]


def arguments(kind: str, files: dict[str, Any], *options: str) -> list[str]:
    named = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    return ["score", kind, *named, *options]


def saved(tmp_path: Path, kind: str, files: dict[str, Any], *options: str) -> dict[str, Any]:
    """What a successful run writes."""
    out = tmp_path / "new" / "scores.json"
    assert main([*arguments(kind, files, *options), "--output", str(out)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def written(folder: Path, **contents: Any) -> dict[str, Path]:
    """Files with these contents, by option."""
    files = {name: folder / f"{name}.json" for name in contents}
    for name, content in contents.items():
        files[name].write_text(json.dumps(content))
    return files


def complaint(capsys: pytest.CaptureFixture[str], kind: str, files: Any, *options: str) -> str:
    """The one line that a refused run prints; nothing is computed or printed before."""
    assert main(arguments(kind, files, *options)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def vqa_files(folder: Path, answers: list[Any], prediction: str = "dog") -> dict[str, Path]:
    """One question with these answers and this prediction."""
    return written(
        folder,
        predictions=[{"question_id": 1, "answer": prediction}],
        annotations={"annotations": [{"question_id": 1, "answers": answers}]},
    )


# ------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize(
    ("version", "name"), [("2021", "official_2021"), ("2017", "official_2017_as_in_LAVIS")]
)
def test_vqa(tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str, name: str) -> None:
    found = saved(tmp_path, "vqa", VQA, "--version", version)
    official = expected("vqa/textvqa_val1000")[name]["accuracy"]
    assert found["scores"] == {"accuracy": pytest.approx(official["overall"], abs=6e-7)}
    types = {name: cell["score"] for name, cell in found["groups"]["answer type"].items()}
    assert types == pytest.approx(official["perAnswerType"], abs=6e-7)
    assert sum(cell["size"] for cell in found["groups"]["question type"].values()) == 1000
    assert len(found["each"]) == 1000
    assert f"{official['overall']:.2f}" in capsys.readouterr().out


def test_ok_vqa_gives_both_figures(tmp_path: Path) -> None:
    files = vqa_files(tmp_path, ["surfboard"] * 10, "Surfboards")
    assert saved(tmp_path, "ok_vqa", files)["scores"] == {
        "accuracy": 0,
        "accuracy, predictions lemmatised": 100,
    }
    assert saved(tmp_path, "vqa", files)["scores"] == {"accuracy": 0}
    assert len(saved(tmp_path, "vqa", files, "--lemmatize")["scores"]) == 2


def test_gqa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = saved(tmp_path, "gqa", GQA, "--consistency")
    official = expected("gqa/sub")["scores"]
    for name in ("accuracy", "open", "validity", "consistency", "distribution"):
        assert found["scores"][name] == pytest.approx(official[name], abs=1e-12)
    assert found["scores"]["grounding"] is None
    assert found["scores"]["accuracy by LAVIS's rule"] > official["accuracy"]
    steps = {n: [cell["score"], cell["size"]] for n, cell in found["groups"]["steps"].items()}
    assert steps == official["accuracyPerSteps"]
    out = capsys.readouterr().out
    assert "grounding: needs --scenes and --attention" in out
    assert "0.0649" in out


def test_gqa_grounding(tmp_path: Path) -> None:
    question = {
        "imageId": "i", "question": "Is it?", "answer": "yes", "isBalanced": True, "semantic": [],
        "types": {"structural": "verify", "semantic": "obj", "detailed": "exist"},
        "annotations": {"question": {"1": "o"}, "fullAnswer": {}},
    }  # fmt: skip
    thing = {"x": 0, "y": 0, "w": 5, "h": 10}
    files = written(
        tmp_path,
        predictions=[{"questionId": "q", "prediction": "Yes"}],
        annotations={"q": question},
        scenes={"i": {"width": 10, "height": 10, "objects": {"o": thing}}},
        attention=[{"questionId": "q", "attention": [[0.7, 0.1], [0.1, 0.1]]}],
    )
    found = saved(tmp_path, "gqa", files)["scores"]
    assert found["grounding"] == pytest.approx(80)
    assert (found["accuracy"], found["accuracy by LAVIS's rule"]) == (0, 100)
    boxes = {"q": [[0, 0, 0.5, 1, 0.9], [0.5, 0, 1, 1, 0.1]]}
    files |= written(tmp_path, attention=boxes)
    found = saved(tmp_path, "gqa", files, "--object-features")["scores"]
    assert found["grounding"] == pytest.approx(90)


AOKVQA = [
    {
        "question_id": "x",
        "choices": ["dog", "cat"],
        "correct_choice_idx": 0,
        "direct_answers": ["dog"] * 2 + ["hound"] * 8,
        "difficult_direct_answer": False,
    }
]


@pytest.mark.parametrize(
    ("predictions", "options", "scores"),
    [
        (
            {"x": {"direct_answer": "dog", "multiple_choice": "cat"}},
            [],
            {"direct answer": 200 / 3, "multiple choice": 0},
        ),
        ({"x": {"direct_answer": "dog", "multiple_choice": ""}}, [], {"direct answer": 200 / 3}),
        ([{"question_id": "x", "multiple_choice": "dog"}], [], {"multiple choice": 100}),
        ([{"question_id": "x", "answer": "hound"}], [], {"direct answer": 100}),
        ({"x": "dog"}, [], {"direct answer": 200 / 3}),
        ({"x": "dog"}, ["--multiple-choice"], {"multiple choice": 100}),
    ],
)
def test_aok_vqa(
    tmp_path: Path, predictions: Any, options: list[str], scores: dict[str, float]
) -> None:
    files = written(tmp_path, predictions=predictions, annotations=AOKVQA)
    assert saved(tmp_path, "aok_vqa", files, *options)["scores"] == pytest.approx(scores)


def test_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "predictions": EVAL / "caption/captions_val2014_fakecap_results.json.gz",
        "annotations": EVAL / "caption/fakecap_refs_coco.json.gz",
    }
    found = saved(tmp_path, "caption", files)
    official = expected("caption/fakecap")["scores"]
    for name, value in found["scores"].items():
        assert value == pytest.approx(100 * official[name], abs=1e-7)
    assert found["scores"].keys() == official.keys() - {"METEOR"}
    assert any(note.startswith("METEOR: no Java") for note in found["notes"])
    assert len(found["each"]) == 1000
    assert "59.99" in capsys.readouterr().out


def test_nocaps_by_domain(tmp_path: Path) -> None:
    files = written(tmp_path, predictions=CAPTION_RESULTS, annotations=CAPTIONS)
    found = saved(tmp_path, "nocaps", files)
    domains = found["groups"]["CIDEr"]
    assert {name: cell["size"] for name, cell in domains.items()} == {
        "in-domain": 1,
        "out-domain": 2,
    }
    assert domains["in-domain"]["score"] == pytest.approx(1000 * 1.0, abs=1e-6)
    weighted = sum(cell["score"] * cell["size"] for cell in domains.values()) / 3
    assert found["scores"]["CIDEr"] == pytest.approx(weighted)


def test_nocaps_without_domains_says_so(tmp_path: Path) -> None:
    plain = CAPTIONS | {"images": [{"id": n} for n in (1, 2, 3)]}
    files = written(tmp_path, predictions=CAPTION_RESULTS, annotations=plain)
    found = saved(tmp_path, "nocaps", files)
    assert found["groups"] == {}
    assert any("does not tell them (`domain`)" in note for note in found["notes"])


# ----------------------------------------------------------------------- other numbers of answers


def test_other_numbers_of_answers_are_scored_officially_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = vqa_files(tmp_path, ["dog", "dog", "dog"])
    assert saved(tmp_path, "vqa", files)["scores"]["accuracy"] == pytest.approx(200 / 3)
    (said,) = caplog.messages
    assert "1 of 1 questions have other than 10 answers (3 to 3)" in said
    assert "66.67" in said
    assert "--few scaled" in said
    assert "100.00" in said


def test_few_answers_scaled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = vqa_files(tmp_path, ["dog", "dog", "dog"])
    assert saved(tmp_path, "vqa", files, "--few", "scaled")["scores"]["accuracy"] == 100
    assert not caplog.messages


def test_annotators_that_cannot_be_told_apart_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [
        {"answer": text, "answer_confidence": "yes"} for text in ["dog"] * 8 + ["cat", "cow"]
    ]
    files = vqa_files(tmp_path, answers)
    assert saved(tmp_path, "vqa", files)["scores"]["accuracy"] == pytest.approx(20)
    (said,) = caplog.messages
    assert "1 of 1 questions have annotators that cannot be told apart" in said
    assert "20.00. With each as an annotator of their own: 100.00" in said


def test_ten_annotators_need_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, "vqa", VQA)
    assert not caplog.messages


# ------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("nocap", [], "Unknown kind of result 'nocap'. Did you mean 'nocaps'?"),
        ("vqa", ["--choices", "x"], "--choices is for gqa, not for vqa"),
        ("gqa", ["--lemmatize"], "--lemmatize is for vqa and ok_vqa, not for gqa"),
        ("vqa", ["--multiple-choice"], "--multiple-choice is for aok_vqa, not for vqa"),
        ("vqa", ["--version", "2019"], "--version: expected 2021 or 2017, saw 2019"),
        ("vqa", ["--few", "no"], "--few: expected official or scaled, saw no"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], kind: str, options: list[str], message: str
) -> None:
    files = {name: VQA[name] for name in ("predictions", "annotations")}
    assert message in complaint(capsys, kind, files, *options)


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("vqa", VQA | {"predictions": "nowhere/x.json"}, "the folder nowhere does not exist"),
        ("vqa", VQA | {"predictions": EVAL}, "is a folder; expected a JSON file"),
        ("vqa", VQA | {"annotations": VQA["questions"]}, "VQA annotations .*, saw VQA questions"),
        ("vqa", VQA | {"annotations": VQA["predictions"]}, "seems to hold VQA results"),
        ("vqa", VQA | {"annotations": GQA["annotations"]}, "VQA annotations .*, saw GQA questions"),
        ("vqa", VQA | {"questions": VQA["annotations"]}, "VQA questions .*, saw VQA annotations"),
        ("vqa", VQA | {"predictions": VQA["questions"]}, "list of results, saw VQA questions"),
        ("vqa", VQA | {"predictions": GQA["predictions"]}, "result 1: .*saw questionId, predict"),
        (
            "vqa",
            VQA | {"predictions": EVAL / "okvqa/pica_gpt3_VinVL_results.json.gz"},
            "1000 of 1000 questions have no result.*another data set or split?",
        ),
        (
            "vqa",
            VQA | {"questions": EVAL / "okvqa/OpenEnded_mscoco_val2014_questions.json.gz"},
            "does not belong to the questions of .*have no annotation",
        ),
        ("gqa", GQA | {"annotations": GQA["choices"]}, "GQA questions .*, saw GQA choices"),
        ("gqa", GQA | {"choices": GQA["annotations"]}, "GQA choices .*, saw GQA questions"),
        ("gqa", GQA | {"annotations": VQA["questions"]}, "GQA questions .*, saw VQA questions"),
        ("gqa", GQA | {"predictions": VQA["predictions"]}, "`questionId` and `prediction`, saw"),
        (
            "caption",
            {"predictions": VQA["predictions"], "annotations": VQA["annotations"]},
            "expected COCO captions .*, saw VQA annotations",
        ),
        (
            "aok_vqa",
            {"predictions": GQA["annotations"], "annotations": VQA["annotations"]},
            "expected A-OKVQA questions .*, saw VQA annotations",
        ),
    ],
)
def test_files_of_another_kind(
    capsys: pytest.CaptureFixture[str], kind: str, files: dict[str, Any], message: str
) -> None:
    assert re.search(message, complaint(capsys, kind, files))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected a list of objects, saw an empty list"),
        ([{"question_id": 1}], "result 1: expected `question_id` and `answer`, saw question_id"),
        ([{"answer": "x"}], "result 1: expected `question_id` and `answer`, saw answer"),
        ([{"question_id": 1, "answer": None}], "question_id 1: `answer` must be a string"),
        ([{"question_id": 1, "answer": "x"}] * 2, "result 2: question_id 1 was there before"),
        ([{"question_id": "1", "answer": "x"}], "numbers and strings differ"),
        ([{"question_id": 2, "answer": "x"}], "1 of 1 questions have no result"),
    ],
)
def test_faulty_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, message: str
) -> None:
    files = vqa_files(tmp_path, ["dog"] * 10) | written(tmp_path, predictions=rows)
    said = complaint(capsys, "vqa", files)
    assert message in said
    assert str(files["predictions"]) in said


@pytest.mark.parametrize("case", ["duplicate id", "missing caption key", "extra unknown id"])
def test_faulty_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    cases = json.loads((EVAL / "caption/malformed_cases.json").read_text(encoding="utf-8"))
    results = cases["cases"][case]["results"]
    files = written(tmp_path, predictions=results, annotations=cases["annotations"])
    assert str(files["predictions"]) in complaint(capsys, "caption", files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"file_name": "x"}]}, "image 1 has no `id`"),
        ({"annotations": [{"image_id": 1}]}, "annotation 1 needs `image_id` and `caption`"),
        (
            {"annotations": [{"image_id": 9, "caption": "x"}]},
            "annotation 1: no image has id 9",
        ),
        ({"annotations": CAPTIONS["annotations"][:2]}, "Image '3' needs a list of references"),
    ],
)
def test_faulty_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    files = written(tmp_path, predictions=CAPTION_RESULTS, annotations=CAPTIONS | change)
    assert message in complaint(capsys, "nocaps", files)


@pytest.mark.parametrize(
    ("predictions", "options", "message"),
    [
        ({"x": {"direct_answer": "", "multiple_choice": ""}}, [], "all answers are empty"),
        ({"x": {"direct_answer": "dog"}}, ["--multiple-choice"], "no answers to multiple choice"),
        ({"x": None}, [], "question_id 'x': `direct_answer` must be a string, saw None"),
        ([{"question_id": "x"}], [], "question_id 'x': `direct_answer` must be a string"),
        ({"x": {"multiple_choice": "bird"}}, [], "'bird' is none of the choices dog, cat"),
        ({"y": "dog"}, [], "1 of 1 questions have no result"),
        ([], [], "saw an empty list"),
    ],
)
def test_faulty_answers_to_aok_vqa(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    predictions: Any,
    options: list[str],
    message: str,
) -> None:
    files = written(tmp_path, predictions=predictions, annotations=AOKVQA)
    assert message in complaint(capsys, "aok_vqa", files, *options)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.json", b"[{", "not valid JSON"),
        ("x.json.gz", gzip.compress(b"[{", mtime=0), "not valid JSON"),
        ("x.json.gz", b"[]", "cannot be decompressed"),
        ("x.json.gz", gzip.compress(b"[1, 2]" * 99, mtime=0)[:-12], "cannot be decompressed"),
    ],
)
def test_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    assert message in complaint(capsys, "vqa", VQA | {"predictions": tmp_path / name})


def test_a_place_where_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = vqa_files(tmp_path, ["dog"] * 10)
    out = str(files["predictions"] / "scores.json")
    assert main([*arguments("vqa", files), "--output", out]) == 2
    assert f"error: --output {out}: " in capsys.readouterr().err


def test_lemmas_without_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lavislite.metrics import lemmas

    lemmas._lemmatizer.cache_clear()
    monkeypatch.setitem(sys.modules, "simplemma", None)
    files = vqa_files(tmp_path, ["dog"] * 10)
    assert "pip install simplemma" in complaint(capsys, "vqa", files, "--lemmatize")
    monkeypatch.setattr("lavislite.score_kinds.find_spec", lambda _: None)
    found = saved(tmp_path, "ok_vqa", files)
    assert found["scores"] == {"accuracy": 100}
    assert any("not scored, pip install" in note for note in found["notes"])


# --------------------------------------------------------------------------------- the benchmark


def test_the_table_of_official_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import official_scores

    out = tmp_path / "table.md"
    options = ["--only", "gqa", "vqa", "--no-java", "--out", str(out)]
    monkeypatch.setattr(official_scores, "_commit", lambda: "abc")
    assert official_scores.main(options) == 0
    text = out.read_text(encoding="utf-8")
    assert "figures agree" in text
    assert "| accuracy | 58.59375 | 58.59375 | 0 |" in text
    monkeypatch.setattr(official_scores, "gqa_match", lambda *_: True)
    assert official_scores.main(options) == 1
    assert "**differs**" in out.read_text(encoding="utf-8")
