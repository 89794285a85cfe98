"""Questions of any shape to one kind of sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_parts import build, draw, write

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.vqa import CocoVQABuilder, ImageVQABuilder

NAME = "{subset}/COCO_{subset}_{image_id:012d}.jpg"


def ten(*answers: str) -> list[dict[str, Any]]:
    return [
        {"answer": answers[n % len(answers)], "answer_confidence": "yes", "answer_id": n + 1}
        for n in range(10)
    ]


def server_files(tmp_path: Path, subset: str = "val2014") -> dict[str, str]:
    """Two pictures, three questions, in the VQA server's files."""
    names = draw(tmp_path / "images" / "val2014", 2)
    for k, name in enumerate(names):
        path = tmp_path / "images" / "val2014" / name
        path.rename(path.with_name(f"COCO_val2014_{k + 7:012d}.jpg"))
    questions = [
        {"image_id": 7, "question": "What is it?", "question_id": 7000},
        {"image_id": 7, "question": "How many?", "question_id": 7001},
        {"image_id": 8, "question": "Is it (red)?", "question_id": 8000},
    ]
    common = {"question_type": "what", "answer_type": "other"}
    annotations = [
        {"question_id": 8000, "image_id": 8, "answers": ten("yes", "no")}
        | {"question_type": "is it", "answer_type": "yes/no"},
        {"question_id": 7000, "image_id": 7, "answers": ten("a cat"), **common},
        {"question_id": 7001, "image_id": 7, "answers": ten("2", "2", "two"), **common},
    ]
    top = {"info": {}, "license": {}, "data_subtype": subset}
    return {
        "questions": str(write(tmp_path / "q.json", {**top, "questions": questions})),
        "annotations": str(write(tmp_path / "a.json", {**top, "annotations": annotations})),
        "images": str(tmp_path / "images"),
    }


def official(tmp_path: Path, *, train: bool = False, **options: Any):
    files = server_files(tmp_path)
    given = {
        "annotations": {"val": [files["questions"], files["annotations"]]},
        "images": files["images"],
        "image_name": NAME,
    }
    return build(CocoVQABuilder, "val", train=train, **{**given, **options})


def records(tmp_path: Path, rows: Any, *, train: bool = False, **options: Any):
    draw(tmp_path / "images", 3)
    annotations = {"train": str(write(tmp_path / "rows.json", rows))}
    images = str(tmp_path / "images")
    return build(
        *(ImageVQABuilder, "train"), train=train, annotations=annotations, images=images, **options
    )


def test_the_servers_files_are_joined(tmp_path: Path) -> None:
    data = official(tmp_path)
    assert data.evaluation == "vqa"
    assert len(data) == 3
    assert [data[i]["text_input"] for i in range(3)] == ["what is it?", "how many?", "is it red?"]
    batch = data.collate([data[i] for i in range(3)])
    assert set(batch) == {"image", "text_input", "question_id", "image_id", "index"}
    assert batch["question_id"].tolist() == [7000, 7001, 8000]
    ids = batch["image_id"].tolist()
    assert ids[0] == ids[1] != ids[2]
    annotation = data.annotation(2)
    assert annotation["image"].endswith("val2014/COCO_val2014_000000000008.jpg")
    assert annotation | {"image": ""} == {
        "question_id": 8000,
        "image_id": "8",
        "image": "",
        "question": "Is it (red)?",
        "answers": ["yes", "no"] * 5,
        "question_type": "is it",
        "answer_type": "yes/no",
    }
    assert "question 8000" in data.record_id(2)


def test_in_training_one_answer_is_drawn_by_weight(tmp_path: Path) -> None:
    data = official(tmp_path, train=True)
    sample = data[1]
    assert sample["answers"] == ["2", "two"]
    assert sample["weights"] == pytest.approx([0.7, 0.3])
    torch.manual_seed(0)
    drawn = [data[1]["text_output"] for _ in range(200)]
    torch.manual_seed(0)
    assert [data[1]["text_output"] for _ in range(200)] == drawn
    assert 0.6 < drawn.count("2") / 200 < 0.8
    batch = data.collate([data[0], data[1]])
    assert batch["answers"] == [["a cat"], ["2", "two"]]
    assert len(batch["text_output"]) == 2
    assert list(data.captions())[:3] == ["what is it?", "a cat", "how many?"]


def test_the_files_that_lavis_prepared(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    folder = "val2014/COCO_val2014_00000000000"
    rows = [
        {
            "question_id": 8000,
            "question": "Is it red?",
            "image": f"{folder}8.jpg",
            "dataset": "vqa",
        },
        {"question_id": 7001, "question": "How many?", "image": f"{folder}7.jpg", "dataset": "vqa"},
    ]
    eval_rows = str(write(tmp_path / "vqa_val_eval.json", rows))
    answer_list = str(write(tmp_path / "answer_list.json", ["yes", "no", "2"]))
    data = official(
        tmp_path,
        annotations={"val": [eval_rows, answer_list, files["annotations"]]},
        image_name=None,
    )
    assert data.answer_list == ["yes", "no", "2"]
    assert [data.annotation(i)["question_id"] for i in range(2)] == [8000, 7001]
    assert data.annotation(0)["answers"] == ["yes", "no"] * 5
    assert data.annotation(0)["answer_type"] == "yes/no"


def test_records_of_your_own(tmp_path: Path) -> None:
    rows = [
        {"file": "0.jpg", "q": "What?", "answer": "net"},
        {"file": "1.jpg", "q": "Who?", "answer": ["me", "me", "you"], "question_id": "x1"},
    ]
    data = records(tmp_path, rows, train=True, columns={"image": "file", "question": "q"})
    assert data[0]["text_output"] == "net"
    assert data[0]["question_id"] == "rows:1"
    assert data[1]["weights"] == pytest.approx([2 / 3, 1 / 3])
    batch = data.collate([data[0], data[1]])
    assert batch["question_id"] == ["rows:1", "x1"]


def test_json_lines(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "0.jpg", "question": "What?", "answer": "it"}\n\n', "utf-8")
    data = build(ImageVQABuilder, "a", annotations={"a": str(file)})
    assert data[0]["text_output"] == "it"
    file.write_text('{"image": "0.jpg"\n', "utf-8")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        build(ImageVQABuilder, "a", annotations={"a": str(file)})


def test_annotators_that_cannot_be_told_apart_keep_their_objects(tmp_path: Path) -> None:
    answers = [{"answer": "no"}, {"answer": "no"}, {"answer": "yes"}]
    rows = [{"image": "0.jpg", "question": "Is it?", "answers": answers}]
    data = records(tmp_path, rows)
    assert data.annotation(0)["answers"] == answers


def test_a_test_split_has_no_answers(tmp_path: Path) -> None:
    files = server_files(tmp_path, subset="val2014")
    data = official(tmp_path, annotations={"val": files["questions"]})
    assert data.annotation(0)["answers"] == []
    with pytest.raises(DataError, match="mine/val has no answers: it cannot be trained on"):
        official(tmp_path, annotations={"val": files["questions"]}, train=True)


def test_the_development_servers_pictures_are_those_of_the_test_split(tmp_path: Path) -> None:
    files = server_files(tmp_path, subset="test-dev2015")
    folder = tmp_path / "images"
    (folder / "val2014").rename(folder / "test2015")
    for path in (folder / "test2015").iterdir():
        path.rename(path.with_name(path.name.replace("val2014", "test2015")))
    cfg = {"annotations": {"val": files["questions"]}, "images": str(folder), "image_name": NAME}
    assert build(CocoVQABuilder, "val", train=False, **cfg)[0] is not None


def test_questions_about_missing_pictures_are_left_out_of_evaluation(tmp_path: Path) -> None:
    rows = [{"image": f"{k}.jpg", "question": f"{k}?", "answer": "x"} for k in (0, 5, 1, 5)]
    data = records(tmp_path, rows, max_bad_fraction=0.5)
    assert [data[i]["text_input"] for i in range(len(data))] == ["0?", "1?"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"data": []}, r"expected a list of records, or an object with `questions`.*saw a dict"),
        ([], "holds no questions"),
        ([3], "record 1: expected an object, saw 3"),
        ([{"image": "0.jpg"}], "record 1: question: expected some text, saw None"),
        ([{"image": "0.jpg", "qestion": "a?"}], "Did you mean 'qestion'"),
        ([{"question": "a?", "image_id": 4}], "image: expected a file name, saw None.*image_name"),
        ([{"image": "0.jpg", "question": "a?", "answer": [1]}], "answer: expected a text, saw 1"),
        ([{"image": "0.jpg", "question": "a?", "answer": []}], "expected an answer or a list"),
        (
            [{"image": "0.jpg", "question": "a?", "question_id": 5}] * 2,
            "record 2: question_id 5 was there before",
        ),
        (
            [
                {"image": "0.jpg", "question": "a?", "answer": "x"},
                {"image": "1.jpg", "question": "b"},
            ],
            r"1 of 2 questions have no answers.*'rows:2'",
        ),
    ],
)
def test_what_is_wrong_with_records(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        records(tmp_path, rows)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    other = {"annotations": [{"question_id": 1, "answers": ten("x")}]}
    path = str(write(tmp_path / "other.json", other))
    with pytest.raises(DataError, match=r"3 of 3 questions have no answers in .*other.json"):
        official(tmp_path, annotations={"val": [files["questions"], path]})
    with pytest.raises(DataError, match=r"other.json: no questions in it"):
        official(tmp_path, annotations={"val": path})


def test_a_pattern_of_file_names_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_name: .*not 'number'"):
        official(tmp_path, image_name="{number}.jpg")
    rows = [{"question": "a?", "image_id": "x"}]
    with pytest.raises(DataError, match=r"image_id 'x' does not fit image_name"):
        records(tmp_path, rows, image_name="{image_id:03d}.jpg")


def test_missing_pictures_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images.cocodataset.org/zips.* test2015.zip"):
        official(tmp_path, images=str(tmp_path / "nowhere"))


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"columns.qestion: .*Did you mean 'question'"):
        records(tmp_path, [], columns={"qestion": "q"})
