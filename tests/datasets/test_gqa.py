"""GQA's official files and LAVIS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, write
from question_parts import gqa_record, pictures

from lavislite.common.errors import DataError
from lavislite.datasets.vqa import GQABuilder

TESTDEV = {
    "201": gqa_record("n54424", "What color is it?", "red"),
    "202": gqa_record("n54424", "Is it red?", "yes", types={"structural": "verify"}),
    "05451384": gqa_record("2354786", "Who is it?", "girl"),
}


def gqa(tmp_path: Path, *contents: Any, train: bool = False, **options: Any):
    folder = pictures(tmp_path / "images", "n54424.jpg", "2354786.jpg")
    files = [str(write(tmp_path / f"{n}.json", content)) for n, content in enumerate(contents)]
    given = {"annotations": {"testdev": files}, "images": str(folder)}
    given |= {"image_name": "{image_id}.jpg"}
    return build(GQABuilder, "testdev", train=train, **{**given, **options})


def test_the_official_file(tmp_path: Path) -> None:
    data = gqa(tmp_path, TESTDEV)
    assert data.evaluation == "gqa"
    assert [data[i]["question_id"] for i in range(3)] == ["201", "202", "05451384"]
    annotation = data.annotation(0)
    assert annotation["image"].endswith("images/n54424.jpg")
    assert annotation["image_id"] == "n54424"
    assert annotation["answers"] == ["red"]
    assert annotation["question_type"] == "query"
    assert data.annotation(1)["question_type"] == "verify"
    official = TESTDEV["201"]
    wanted = (
        *("types", "groups", "entailed", "equivalent", "semantic", "isBalanced", "annotations"),
        "fullAnswer",
    )
    assert annotation["details"] == {key: official[key] for key in wanted}


def test_in_training_one_answer_and_no_details(tmp_path: Path) -> None:
    data = gqa(tmp_path, TESTDEV, train=True)
    assert data[0]["text_output"] == "red"
    assert data[0]["weights"] == [1.0]
    assert data.annotation(0)["details"] == {}


def test_several_files_are_one_split(tmp_path: Path) -> None:
    shards = [{key: record} for key, record in TESTDEV.items()]
    data = gqa(tmp_path, *shards)
    assert [data.annotation(i)["question_id"] for i in range(3)] == list(TESTDEV)


def test_a_question_that_is_in_two_files_counts_once(tmp_path: Path) -> None:
    data = gqa(tmp_path, TESTDEV, {"202": TESTDEV["202"]})
    assert len(data) == 3
    with pytest.raises(DataError, match=r"1.json, question 202: .* for another question: 'Is it"):
        gqa(tmp_path / "b", TESTDEV, {"202": TESTDEV["201"]})


def test_the_test_split_has_no_answers(tmp_path: Path) -> None:
    data = gqa(tmp_path, {"7": gqa_record("n54424", "What is it?", None)})
    assert data.annotation(0)["answers"] == []
    assert data.annotation(0)["details"] == {"isBalanced": True}


def test_the_file_that_lavis_prepared(tmp_path: Path) -> None:
    rows = [
        {"question": "Is it overcast?", "answer": "no", "image": "n54424.jpg", "question_id": "02"},
        {"question": "Who?", "answer": "girl", "image": "2354786.jpg", "question_id": "03"},
    ]
    data = gqa(tmp_path, rows)
    assert [data.annotation(i)["answers"] for i in range(2)] == [["no"], ["girl"]]
    assert data[0]["question_id"] == "02"
    by_id = {row["question_id"]: {k: row[k] for k in row if k != "question_id"} for row in rows}
    assert gqa(tmp_path / "b", by_id)[1]["question_id"] == "03"


def test_a_repeated_id_is_not_swallowed(tmp_path: Path) -> None:
    write(tmp_path / "one.json", {"7": TESTDEV["201"]})
    text = (tmp_path / "one.json").read_text("utf-8")
    (tmp_path / "two.json").write_text(f"{text[:-1]}, {text[1:]}", "utf-8")
    with pytest.raises(DataError, match=r"question 7: question_id '7' was there before"):
        gqa(tmp_path, annotations={"testdev": str(tmp_path / "two.json")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1": {"objects": {}, "width": 5, "height": 5}}, "0.json: holds scene graphs"),
        ({"1": {"valid": ["a"], "plausible": ["a"]}}, "holds GQA's choices of answers, not quest"),
        ([{"questionId": "1", "prediction": "a"}], "holds predictions for GQA, not questions"),
        ({**TESTDEV, "9": {"imageId": "n54424"}}, "question 9: question: expected some text"),
        ({**TESTDEV, "9": {"question": "a?"}}, "question 9: image: expected a file name, saw None"),
        ({**TESTDEV, "9": []}, "question 9: expected an object"),
        ({**TESTDEV, "9": {}}, "question 9: question: expected some text"),
        (
            {"data_subtype": "val2014", "questions": [{"question_id": 1, "question": "a?"}]},
            "holds VQAv2's questions, where mine expects GQA's.*write `builder: coco_vqa`",
        ),
        (
            [{"image": "0.jpg", "question": "a?", "answer": ["a"] * 10, "dataset": "vqa"}],
            "holds VQAv2's questions",
        ),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gqa(tmp_path, content)
