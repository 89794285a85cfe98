"""Visual Genome's official files of questions and LAVIS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, write
from question_parts import pictures

from lavislite.common.errors import DataError
from lavislite.datasets.vqa import VGVQABuilder

NAMES = ["image/{image_id}.jpg", "VG_100K/{image_id}.jpg", "VG_100K_2/{image_id}.jpg"]
QUESTIONS = [
    {
        "id": 1,
        "qas": [
            {"a_objects": [], "question": "What color is the clock?", "image_id": 1}
            | {"qa_id": 986768, "answer": "Two.", "q_objects": []},
            {"question": "Where?", "image_id": 1, "qa_id": 986769, "answer": "New York"},
        ],
    },
    {"id": 3, "qas": []},  # a picture without questions
    {"id": 2, "qas": [{"question": "Who?", "qa_id": 5, "answer": "A man."}]},
]
URL = "https://cs.stanford.edu/people/rak248"
IMAGE_DATA = [
    {"image_id": 1, "url": f"{URL}/VG_100K_2/1.jpg", "width": 8, "height": 8, "coco_id": None},
    {"image_id": 2, "url": f"{URL}/VG_100K/2.jpg", "width": 8, "height": 8, "coco_id": 4},
]


def vg(tmp_path: Path, *contents: Any, names: tuple[str, ...], **options: Any):
    files = [str(write(tmp_path / f"{n}.json", content)) for n, content in enumerate(contents)]
    folder = str(pictures(tmp_path / "images", *names))
    given = {"annotations": {"train": files}, "images": folder, "image_name": NAMES}
    return build(VGVQABuilder, "train", **{**given, **options})


@pytest.mark.parametrize(
    "names", [("image/1.jpg", "image/2.jpg"), ("VG_100K_2/1.jpg", "VG_100K/2.jpg")]
)
@pytest.mark.parametrize("files", [[QUESTIONS], [QUESTIONS, IMAGE_DATA], [IMAGE_DATA, QUESTIONS]])
def test_the_official_files_with_either_layout_of_the_pictures(
    tmp_path: Path, names: tuple[str, ...], files: list[Any]
) -> None:
    data = vg(tmp_path, *files, names=names)
    assert [data[i]["question_id"] for i in range(3)] == [986768, 986769, 5]
    # answers as LAVIS prepared them: lower case, no full stop
    assert [data[i]["text_output"] for i in range(3)] == ["two", "new york", "a man"]
    assert data[0]["weights"] == [1.0]
    shown = [data.annotation(i)["image"] for i in range(3)]
    assert [str(Path(path).relative_to(tmp_path / "images")) for path in shown] == [
        names[0],
        names[0],
        names[1],
    ]


def test_pictures_are_where_the_urls_say(tmp_path: Path) -> None:
    data = vg(tmp_path, QUESTIONS, IMAGE_DATA, names=("VG_100K_2/1.jpg",), max_bad_fraction=1.0)
    assert data.annotation(2)["image"].endswith("VG_100K/2.jpg")


def test_the_file_that_lavis_prepared(tmp_path: Path) -> None:
    row = {"question_id": 986769, "question": "How many?", "answer": "two", "image": "image/1.jpg"}
    data = vg(tmp_path, [{**row, "dataset": "vg"}], names=("image/1.jpg",), image_name=None)
    assert data[0]["text_output"] == "two"
    assert data[0]["answers"] == ["two"]
    assert data[0]["question_id"] == 986769


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"id": 1, "regions": [{"phrase": "a cat"}]}], "holds Visual Genome's regions, not quest"),
        ([{"id": 1, "qas": {}}], "record 1: qas: expected a list of questions"),
        ([{"id": 1, "qas": [{"question": "a?"}]}], "record 1, question 1: expected an object with"),
        ([{"qas": [{"question": "a?", "qa_id": 1}]}], "image: expected a file name, saw None"),
        ([{"id": 1, "qas": [{"question": "a?", "qa_id": 1, "answer": 5}]}], "expected an answer"),
        (IMAGE_DATA, "0.json: no questions in it"),
        ([{"id": 1, "url": 5}], "url: expected a text, saw 5"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vg(tmp_path, content, names=("image/1.jpg",))
