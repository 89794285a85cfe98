"""What is wrong with files of questions is said in one sentence, with file and record."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, draw, write
from question_parts import gqa_record, server_files, ten

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.vqa import CocoVQABuilder, ImageVQABuilder

NAME = "{subset}/COCO_{subset}_{image_id:012d}.jpg"

AOK = {"image": "0.jpg", "question": "a?", "choices": ["a", "b"], "correct_choice_idx": 1}


def records(tmp_path: Path, rows: Any, **options: Any):
    draw(tmp_path / "images", 3)
    annotations = {"val": str(write(tmp_path / "rows.json", rows))}
    options = {"annotations": annotations, "images": str(tmp_path / "images")} | options
    return build(ImageVQABuilder, "val", train=False, **options)


def vqa(tmp_path: Path, *files: str, images: str = ""):
    given = {"annotations": {"val": list(files)}, "images": images or str(tmp_path / "images")}
    return build(CocoVQABuilder, "val", train=False, image_name=NAME, **given)


def changed(file: str, **changes: Any) -> str:
    """A copy of a server's file with other keys."""
    content = json.loads(Path(file).read_text("utf-8"))
    return str(write(Path(file).with_name("changed.json"), {**content, **changes}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"data": []}, r"expected a list of records, or an object with `questions`.*keys data"),
        ({}, r"expected a list of records.*keys \(none\)"),
        (5, "expected a list of records.*saw a int"),
        ([], "holds no questions"),
        ({"questions": []}, "holds no questions"),
        ([3], "record 1: expected an object, saw 3"),
        (["yes", 3], "record 2: expected an object, saw 3"),
        (["yes", "no"], "rows.json: no questions in it"),
        ([{"image": "0.jpg", "question": "a?"}, "x"], "record 2: expected an object, saw 'x'"),
        ([{"image": "0.jpg"}], "record 1: question: expected some text, saw None"),
        ([{"image": "0.jpg", "question": " "}], "record 1: question: expected some text, saw ' '"),
        ([{"image": "0.jpg", "qestion": "a?"}], "Did you mean 'qestion'"),
        ([{"imge": "0.jpg", "question": "a?"}], "image: expected .* saw None.*mean 'imge'"),
        ([{"question": "a?", "image_id": 4}], "image: expected a file name, saw None.*image_name"),
        ([{"question": "a?"}], "image: expected a file name, saw None"),
        ([{"image": "0.jpg", "question": "a?", "answer": [1]}], "answer: expected a text, saw 1"),
        ([{"image": "0.jpg", "question": "a?", "answer": []}], "expected an answer or a list"),
        ([{"image": "0.jpg", "question": "a?", "answer": 5}], "expected an answer or a list"),
        ([{"image": "0.jpg", "question": "a?", "question_id": 1.5}], "question_id: expected a num"),
        ([{"image": "0.jpg", "question": "a?", "image_id": []}], "image_id: expected a number or"),
        ([AOK | {"choices": "ab"}], "record 1: choices: expected a list of texts, saw 'ab'"),
        ([AOK | {"choices": ["a", None]}], "record 1: choices: expected a list of texts"),
        ([AOK | {"correct_choice_idx": 2}], "correct_choice_idx: .* one of 2 choices.* saw 2"),
        ([AOK | {"correct_choice_idx": -1}], "correct_choice_idx: .* one of 2 choices.* saw -1"),
        ([AOK | {"correct_choice_idx": "1"}], "correct_choice_idx: .* one of 2 .* saw '1'"),
        ([AOK | {"difficult_direct_answer": "no"}], "expected true or false, saw 'no'"),
        ([{"image": "0.jpg", "caption": "a cat"}], "record 1: holds captions, not questions"),
        ([{"question_id": 4, "answer": "a"}], r"holds answers without questions \(a result file"),
        (
            [{"image": "0.jpg", "question": "a?", "question_id": 5}] * 2,
            "record 2: question_id 5 was there before",
        ),
        (
            [
                {"image": "0.jpg", "question": "a?", "answer": "x"},
                {"image": "1.jpg", "question": "b"},
            ],
            r'1 of 2 questions have no answers.*"rows:2"',
        ),
    ],
)
def test_what_is_wrong_with_records(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        records(tmp_path, rows)


# ----------------------------------------------------------------------------------------- columns


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"columns.qestion: .*Did you mean 'question'"):
        records(tmp_path, [], columns={"qestion": "q"})


def test_a_column_that_no_record_has_is_named(tmp_path: Path) -> None:
    rows = [{"image": "0.jpg", "question": "a?", "reply": "x"}]
    with pytest.raises(
        DataError, match=r"columns.answer: no record has 'replie'. Did you mean 'reply'\?"
    ):
        records(tmp_path, rows, columns={"answer": "replie"})
    assert records(tmp_path, rows, columns={"answer": "reply"}).annotation(0)["answers"] == ["x"]


def test_a_column_need_not_be_in_every_record(tmp_path: Path) -> None:
    rows = [{"image": "0.jpg", "question": f"{k}?"} for k in range(2)]
    rows[0]["kind"] = "number"
    data = records(tmp_path, rows, columns={"answer_type": "kind"})
    assert [data.annotation(i)["answer_type"] for i in range(2)] == ["number", ""]


# -------------------------------------------------------------------------- files of the VQA server


def test_answers_to_other_questions(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    other = {"annotations": [{"question_id": 1, "answers": ten("x")}]}
    path = str(write(tmp_path / "other.json", other))
    with pytest.raises(DataError, match=r"3 of 3 questions have no answers in .*other.json"):
        vqa(tmp_path, files["questions"], path)


def test_answers_of_another_split(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    train = changed(files["annotations"], data_subtype="train2014")
    with pytest.raises(
        DataError, match=r"changed.json: holds the answers to train2014, .* of val2014 \(.*q.json\)"
    ):
        vqa(tmp_path, files["questions"], train)


def test_answers_without_questions(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    with pytest.raises(DataError, match=r"a.json: no questions.* List the file of the questions"):
        vqa(tmp_path, files["annotations"])


def test_some_questions_without_answers(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    answers = json.loads(Path(files["annotations"]).read_text("utf-8"))["annotations"][1:]
    some = changed(files["annotations"], annotations=answers)
    with pytest.raises(DataError, match="1 of 3 questions have no answers .* question_id 8000"):
        vqa(tmp_path, files["questions"], some)


def test_answers_to_more_questions_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lavislite"), "propagate", True)
    files = server_files(tmp_path)
    questions = json.loads(Path(files["questions"]).read_text("utf-8"))["questions"][:1]
    fewer = changed(files["questions"], questions=questions)
    with caplog.at_level(logging.WARNING, "lavislite"):
        data = vqa(tmp_path, fewer, files["annotations"])
    assert len(data) == 1
    assert "2 of 3 annotations belong to no question of the split" in caplog.text


def test_a_question_that_is_answered_twice(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    with pytest.raises(DataError, match=r"annotation 1: question_id 8000 was annotated before"):
        vqa(tmp_path, files["questions"], files["annotations"], files["annotations"])


def test_files_that_number_their_questions_alike(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    row = {"question_id": 7000, "question": "Where?", "image": "val2014/x.jpg", "answer": "here"}
    rows = str(write(tmp_path / "rows.json", [row]))
    with pytest.raises(DataError, match=r"'What is it\?' in an earlier file, 'Where\?' here"):
        vqa(tmp_path, files["questions"], files["annotations"], rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 2, "caption": "a cat"}]},
            "annotation 1: holds captions, not answers to questions",
        ),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]},
            "annotation 1: holds boxes of objects",
        ),
        ({"annotations": [{"question_id": 1}]}, "annotation 1: no `answers` among its keys"),
        ({"annotations": [{"answers": ten("a")}]}, "annotation 1: no `question_id` among its keys"),
        ({"annotations": [3]}, "annotation 1: expected an object, saw 3"),
        ({"questions": {"a": 1}}, "holds no questions"),
        (
            {"1": gqa_record("n1", "What?", "it")},
            "holds GQA's questions, where mine expects VQAv2's.*write `builder: gqa`",
        ),
        (
            [{"id": 1, "qas": [{"qa_id": 1, "question": "a?", "answer": "b"}]}],
            "holds Visual Genome's questions.*write `builder: vg_vqa`",
        ),
        (
            [{"image": "0.jpg", "question": "a?", "answer": "x", "dataset": "vg"}],
            "holds Visual Genome's questions",
        ),
        (
            {"images": [{"sentences": [], "filename": "a.jpg"}], "dataset": "coco"},
            "expected a list of records.*with the keys images, dataset",
        ),
    ],
)
def test_files_of_another_data_set(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vqa(tmp_path, str(write(tmp_path / "wrong.json", content)))


# --------------------------------------------------------------------------------- files and splits


def test_a_split_or_file_that_does_not_exist(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    with pytest.raises(ConfigError, match=r"no split 'vall'. Did you mean 'val'\?"):
        build(CocoVQABuilder, "vall", annotations={"val": files["questions"]})
    with pytest.raises(DataError, match=r"No annotation file .*questoins.json"):
        vqa(tmp_path, str(tmp_path / "questoins.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'[{"image": "0.jpg", "question": "a?"}, {"ima', "line 1, column 41.*cut short"),
        (b'{"questions": [{"question_id": 1', "cut short"),
        ('[{"image": "é.jpg"}]'.encode("latin-1"), "not UTF-8 text"),
        ('[{"image": "a.jpg"}]'.encode("utf-16"), "not UTF-8 text"),
        (b'[\n{"image": "0.jpg",}]', "line 2, column"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(ImageVQABuilder, "val", annotations={"val": str(tmp_path / "rows.json")})


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("image,question\n0.jpg,Où?\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        build(ImageVQABuilder, "val", annotations={"val": str(tmp_path / "rows.csv")})
