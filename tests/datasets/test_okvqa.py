"""OK-VQA's and A-OKVQA's official files and LAVIS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, write
from question_parts import aokvqa_record, pictures, server_files

from lavislite.common.errors import DataError
from lavislite.datasets.vqa import AOKVQABuilder, CocoVQABuilder, OKVQABuilder

NAMES = ["{subset}2017/{image_id:012d}.jpg", "val2014/COCO_val2014_{image_id:012d}.jpg"]


# ------------------------------------------------------------------------------------------ OK-VQA


def test_okvqa_answers_come_with_what_was_said_before_stemming(tmp_path: Path) -> None:
    pictures(tmp_path, "val2014/COCO_val2014_000000297147.jpg")
    answers = [
        {"answer_id": n, "answer": "race", "raw_answer": "racing", "answer_confidence": "yes"}
        for n in range(1, 11)
    ]
    question = {"image_id": 297147, "question": "What sport?", "question_id": 2971475}
    annotation = {"question_id": 2971475, "image_id": 297147, "answers": answers, "confidence": 3}
    annotation |= {"question_type": "four", "answer_type": "other"}
    subset = {"data_subtype": "val2014"}
    # data_subtype may stand before or after the questions
    questions = write(tmp_path / "q.json", {"questions": [question], **subset})
    annotations = write(tmp_path / "a.json", {**subset, "annotations": [annotation]})
    data = build(
        *(OKVQABuilder, "test"),
        train=False,
        annotations={"test": [str(annotations), str(questions)]},
        images=str(tmp_path),
        image_name="{subset}/COCO_{subset}_{image_id:012d}.jpg",
    )
    assert data.evaluation == "ok_vqa"
    assert data[0]["question_id"] == 2971475
    assert data.annotation(0)["answers"] == ["race"] * 10
    assert data.annotation(0)["question_type"] == "four"


def test_okvqa_as_lavis_prepared_it(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    row = {"question_id": 8000, "question": "Is it?", "dataset": "vqa"}
    row["image"] = "val2014/COCO_val2014_000000000008.jpg"
    rows = str(write(tmp_path / "vqa_val_eval.json", [row]))
    data = build(
        *(OKVQABuilder, "test"),
        train=False,
        annotations={"test": [rows, files["annotations"]]},
        images=files["images"],
    )
    assert data.annotation(0)["answers"] == ["yes", "no"] * 5


# ----------------------------------------------------------------------------------------- A-OKVQA


def aokvqa(tmp_path: Path, rows: Any, *, train: bool = False, picture: str, split: str = "val"):
    return build(
        *(AOKVQABuilder, split),
        train=train,
        annotations={split: str(write(tmp_path / "rows.json", rows))},
        images=str(pictures(tmp_path / "images", picture)),
        image_name=NAMES,
    )


def test_the_official_file(tmp_path: Path) -> None:
    row = aokvqa_record("val", "22jbM6gDxdaMaunuzgrsBB")
    data = aokvqa(tmp_path, [row], picture="val2017/000000461751.jpg")
    assert data.evaluation == "aok_vqa"
    assert data[0]["question_id"] == "22jbM6gDxdaMaunuzgrsBB"
    annotation = data.annotation(0)
    assert annotation["image"].endswith("val2017/000000461751.jpg")
    assert annotation["image_id"] == "461751"
    assert annotation["answers"] == row["direct_answers"]
    wanted = ("choices", "correct_choice_idx", "difficult_direct_answer", "rationales")
    assert annotation["details"] == {key: row[key] for key in wanted}


def test_the_pictures_of_2014_will_do(tmp_path: Path) -> None:
    name = "val2014/COCO_val2014_000000461751.jpg"
    data = aokvqa(tmp_path, [aokvqa_record("train", "x")], picture=name, train=True)
    assert data.annotation(0)["image"].endswith(name)
    assert data[0]["answers"] == ["ocean", "shrub", "beach", "surfboard"]
    assert data[0]["weights"] == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_the_file_that_lavis_prepared_names_the_picture(tmp_path: Path) -> None:
    name = "train2014/COCO_train2014_000000461751.jpg"
    row = {**aokvqa_record("val", "x"), "image": name}
    data = aokvqa(tmp_path, [row], picture=name)
    assert data.annotation(0)["image"].endswith(name)


def test_the_test_split_has_choices_but_no_answers(tmp_path: Path) -> None:
    rows = [aokvqa_record("test", "x")]
    data = aokvqa(tmp_path, rows, picture="test2017/000000461751.jpg", split="test")
    assert data.annotation(0)["answers"] == []
    assert data.annotation(0)["details"].keys() == {"choices", "difficult_direct_answer"}


def test_missing_pictures_are_those_of_2017(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val2017/000000461751.jpg.*lavislite download aok_vqa"):
        aokvqa(tmp_path, [aokvqa_record("val", "x")], picture="other.jpg")


def test_files_of_another_data_set(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    with pytest.raises(DataError, match=r"VQAv2's questions, where mine expects A-OKVQA's"):
        build(AOKVQABuilder, "val", annotations={"val": files["questions"]}, image_name=NAMES)
    rows = str(write(tmp_path / "rows.json", [aokvqa_record("val", "x")]))
    with pytest.raises(DataError, match=r"A-OKVQA's questions.*write `builder: aok_vqa`"):
        build(CocoVQABuilder, "val", annotations={"val": rows}, image_name=NAMES)
    said = {"x": {"multiple_choice": "dock", "direct_answer": "dock"}}
    predictions = str(write(tmp_path / "said.json", said))
    with pytest.raises(DataError, match=r"holds predictions for A-OKVQA, not questions"):
        build(AOKVQABuilder, "val", annotations={"val": predictions})
