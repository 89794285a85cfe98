"""Questions of VQAv2's files and of your own to one kind of sample."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_parts import build, draw, write
from question_parts import server_files

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.vqa import CocoVQABuilder, ImageVQABuilder

NAME = "{subset}/COCO_{subset}_{image_id:012d}.jpg"


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


# ------------------------------------------------------------------------------------------ VQAv2


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
        "details": {},
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
        tmp_path / "again",
        annotations={"val": [eval_rows, answer_list, files["annotations"]]},
        image_name=None,
    )
    assert data.answer_list == ["yes", "no", "2"]
    assert [data.annotation(i)["question_id"] for i in range(2)] == [8000, 7001]
    assert data.annotation(0)["answers"] == ["yes", "no"] * 5
    assert data.annotation(0)["answer_type"] == "yes/no"


def test_lavis_training_records_have_their_answers(tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "Who?", "image": "0.jpg", "dataset": "vqa"}
    draw(tmp_path, 1)
    files = [
        str(write(tmp_path / "vqa_train.json", [{**row, "answer": ["me"] * 9 + ["you"]}])),
        str(write(tmp_path / "vqa_val.json", [{**row, "question_id": 2, "answer": ["us"] * 10}])),
    ]
    data = build(CocoVQABuilder, annotations={"train": files}, images=str(tmp_path))
    assert [data[i]["question_id"] for i in range(2)] == [1, 2]
    assert data[0]["weights"] == pytest.approx([0.9, 0.1])


def test_ids_may_be_texts_in_one_file_and_numbers_in_the_other(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    content = json.loads(Path(files["questions"]).read_text("utf-8"))
    for question in content["questions"]:
        question |= {key: str(question[key]) for key in ("question_id", "image_id")}
    write(Path(files["questions"]), content)
    given = [files["questions"], files["annotations"]]
    data = build(
        *(CocoVQABuilder, "val"),
        train=False,
        annotations={"val": given},
        images=files["images"],
        image_name=NAME,
    )
    assert [data[i]["question_id"] for i in range(3)] == ["7000", "7001", "8000"]
    assert data.annotation(2)["answers"] == ["yes", "no"] * 5


def test_a_test_split_has_no_answers(tmp_path: Path) -> None:
    questions = server_files(tmp_path)["questions"]
    data = official(tmp_path / "again", annotations={"val": questions})
    assert data.annotation(0)["answers"] == []
    with pytest.raises(DataError, match="mine/val has no answers: it cannot be trained on"):
        official(tmp_path / "train", annotations={"val": questions}, train=True)


def test_the_development_servers_pictures_are_those_of_the_test_split(tmp_path: Path) -> None:
    files = server_files(tmp_path, subset="test-dev2015")
    assert (tmp_path / "images" / "test2015").is_dir()
    cfg = {"annotations": {"val": files["questions"]}, "images": files["images"]}
    assert build(CocoVQABuilder, "val", train=False, image_name=NAME, **cfg)[0] is not None


# ------------------------------------------------------------------------------ records of your own


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


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path: Path, suffix: str, delimiter: str) -> None:
    draw(tmp_path / "csv", 2)
    file = tmp_path / "csv" / f"rows.{suffix}"  # what the folder is called does not matter
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter=delimiter)
        table.writerow(["image", "question", "answer", "question_id"])
        table.writerow(["0.jpg", "What, then?", "a cat, black", "17"])
        table.writerow(["1.jpg", "Who?", json.dumps(["me", "me", "ü"]), "x1"])
    data = build(ImageVQABuilder, "a", annotations={"a": str(file)})
    assert data.annotation(0)["question_id"] == 17
    assert data.annotation(0)["question"] == "What, then?"
    assert data.annotation(0)["answers"] == ["a cat, black"]
    assert data.annotation(1)["question_id"] == "x1"
    assert data.annotation(1)["answers"] == ["me", "me", "ü"]


def test_in_a_table_a_list_is_a_json_list(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    file = tmp_path / "rows.tsv"
    file.write_text("image\tquestion\tanswer\n0.jpg\tWho?\t['me', 'you']\n", "utf-8")
    with pytest.raises(DataError, match=r"line 2: answer: expected one answer, or a JSON list"):
        build(ImageVQABuilder, "a", annotations={"a": str(file)})


def test_an_empty_field_of_a_table_is_no_answer(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    file = tmp_path / "rows.csv"
    file.write_text("image,question,answer\n0.jpg,Who?,\n", "utf-8")
    data = build(ImageVQABuilder, "a", train=False, annotations={"a": str(file)})
    assert data.annotation(0)["answers"] == []
    file.write_text("image,question,answer\n0.jpg,Who?,\n0.jpg,What?,it\n", "utf-8")
    with pytest.raises(DataError, match=r'1 of 2 questions have no answers.*"rows:2"'):
        build(ImageVQABuilder, "a", train=False, annotations={"a": str(file)})


def test_annotators_that_cannot_be_told_apart_keep_their_objects(tmp_path: Path) -> None:
    answers = [{"answer": "no"}, {"answer": "no"}, {"answer": "yes"}]
    rows = [{"image": "0.jpg", "question": "Is it?", "answers": answers}]
    data = records(tmp_path, rows)
    assert data.annotation(0)["answers"] == answers


def test_any_number_of_annotators(tmp_path: Path) -> None:
    given = [["a"], ["a", "b", "b"], ["c"] * 12]
    rows = [{"image": "0.jpg", "question": "a?", "answer": answers} for answers in given]
    data = records(tmp_path, rows, train=True)
    assert [data.annotation(i)["answers"] for i in range(3)] == given
    assert data[1]["weights"] == pytest.approx([1 / 3, 2 / 3])


def test_an_empty_answer_counts_in_scoring_and_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"image": "0.jpg", "question": "a?", "answer": ["x", "", "", "y"]}]
    data = records(tmp_path, rows, train=True)
    assert data.annotation(0)["answers"] == ["x", "", "", "y"]
    assert data[0]["answers"] == ["x", "y"]
    assert data[0]["weights"] == pytest.approx([0.5, 0.5])
    assert list(data.captions()) == ["a?", "x", "y"]


def test_nothing_but_empty_answers_is_no_answer(tmp_path: Path) -> None:
    rows = [{"image": "0.jpg", "question": "a?", "answer": empty} for empty in ("", ["", " "])]
    assert records(tmp_path, rows).annotation(1)["answers"] == []
    with pytest.raises(DataError, match="cannot be trained on"):
        records(tmp_path, rows, train=True)


def test_unusual_texts_survive(tmp_path: Path) -> None:
    texts = ["line\u2028separator", "emoji 🐈‍⬛", "עברית", "x" * 10_000, "lone \ud800"]
    rows = [{"image": "0.jpg", "question": text, "answer": text} for text in texts]
    data = records(tmp_path, rows)
    assert [data.annotation(i)["question"] for i in range(len(texts))] == texts
    assert [data.annotation(i)["answers"] for i in range(len(texts))] == [[t] for t in texts]


def test_of_several_image_names_the_first_that_exists_is_taken(tmp_path: Path) -> None:
    rows = [{"question": "a?", "image_id": k} for k in (1, "2")]
    data = records(tmp_path, rows, image_name=["{image_id:03d}.jpg", "{image_id}.jpg"])
    assert [Path(data.annotation(i)["image"]).name for i in range(2)] == ["1.jpg", "2.jpg"]


def test_questions_about_missing_pictures_are_left_out_of_evaluation(tmp_path: Path) -> None:
    rows = [{"image": f"{k}.jpg", "question": f"{k}?", "answer": "x"} for k in (0, 5, 1, 5)]
    data = records(tmp_path, rows, max_bad_fraction=0.5)
    assert [data[i]["text_input"] for i in range(len(data))] == ["0?", "1?"]
    train = records(tmp_path, rows, max_bad_fraction=0.5, train=True)
    assert [train[i] is None for i in range(4)] == [False, True, False, True]


def test_questions_by_picture_those_with_long_questions_first(tmp_path: Path) -> None:
    asked = [
        ("0", "a"),
        ("1", "what is it"),
        ("0", "it"),
        ("2", "what"),
        ("1", "b"),
        ("9", "x" * 99),
    ]
    rows = [
        {"image": f"{image}.jpg", "question": question, "answer": "x"} for image, question in asked
    ]
    data = records(tmp_path, rows, max_bad_fraction=0.5)
    names = [Path(data.annotation(i)["image"]).name for i in range(len(data))]
    assert names == ["0.jpg", "1.jpg", "0.jpg", "2.jpg", "1.jpg"]
    assert data.by_picture() == [[1, 4], [3], [0, 2]]
    sample = data[2]
    assert {"image": sample.pop("image"), **data.question(2)}.keys() == {"image", *sample}
    assert data.question(2) == sample


def test_missing_pictures_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lavislite download coco_vqa"):
        official(tmp_path, images=str(tmp_path / "nowhere"))


def test_a_pattern_of_file_names_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_name: .*not 'number'"):
        official(tmp_path / "a", image_name="{number}.jpg")
    with pytest.raises(ConfigError, match=r"mine.image_name: expected a file name.*saw 3"):
        official(tmp_path / "b", image_name=3)
    rows = [{"question": "a?", "image_id": "x"}]
    with pytest.raises(DataError, match=r"image_id 'x' does not fit image_name"):
        records(tmp_path, rows, image_name="{image_id:03d}.jpg")
    with pytest.raises(DataError, match=r"image_id 'x': the annotations do not say which file"):
        records(tmp_path, rows, image_name="{subset}/{image_id}.jpg")
