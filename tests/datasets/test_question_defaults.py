"""The packaged defaults find each data set's files where they are unpacked, by name alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from dataset_parts import write
from question_parts import aokvqa_record, gqa_record, pictures, ten

import lavislite
from lavislite.cli import main

TOY = str(Path(__file__).parents[1] / "toy_parts.py")
SMALL = "vis_processor: {train: {image_size: 8}, eval: {image_size: 8}}"
VAL = "val2014/COCO_val2014_000000000007.jpg"
ROW = {"question_id": 7000, "question": "What is it?", "image": VAL, "dataset": "vqa"}
GQA = {"7": gqa_record("n1", "What?", "it")}


def questions(subset: str) -> dict[str, Any]:
    question = {"image_id": 7, "question": "What is it?", "question_id": 7000}
    return {"data_subtype": subset, "questions": [question]}


def answers(subset: str) -> dict[str, Any]:
    annotation = {"question_id": 7000, "image_id": 7, "answers": ten("a cat")}
    return {"data_subtype": subset, "annotations": [annotation]}


def server(folder: str, prefix: str, kind: str) -> dict[str, Any]:
    """The VQA server's files about train2014 and val2014."""
    files = {}
    for subset in ("train2014", "val2014"):
        files[f"{folder}/{kind}mscoco_{subset}_questions.json"] = questions(subset)
        files[f"{folder}/{prefix}mscoco_{subset}_annotations.json"] = answers(subset)
    return files


COCO_IMAGES = [
    f"coco/images/{s}/COCO_{s}_000000000007.jpg" for s in ("train2014", "val2014", "test2015")
]
COCO, OK, AOK, GQ, VG = (f"{name}/annotations" for name in ("coco", "okvqa", "aokvqa", "gqa", "vg"))
LAYOUTS: dict[tuple[str, str], tuple[dict[str, Any], list[str], set[str]]] = {
    ("coco_vqa", "default"): (
        server(COCO, "v2_", "v2_OpenEnded_")
        | {
            f"{COCO}/v2_OpenEnded_mscoco_{s}_questions.json": questions(s)
            for s in ("test2015", "test-dev2015")
        },
        COCO_IMAGES,
        {"train", "val", "test", "test-dev"},
    ),
    ("coco_vqa", "lavis"): (
        {
            f"{COCO}/vqa_train.json": [{**ROW, "answer": ["it"] * 10}],
            f"{COCO}/vqa_val_eval.json": [ROW],
            f"{COCO}/vqa_test.json": [ROW],
            f"{COCO}/answer_list.json": ["it", "yes"],
            f"{COCO}/v2_mscoco_val2014_annotations.json": answers("val2014"),
        },
        COCO_IMAGES,
        {"train", "val", "test"},
    ),
    ("ok_vqa", "default"): (
        server(OK, "", "OpenEnded_"),
        COCO_IMAGES,
        {"train", "val", "test"},
    ),
    ("ok_vqa", "lavis"): (
        {
            f"{OK}/okvqa_train.json": [{**ROW, "answer": ["it"] * 10}],
            f"{OK}/vqa_val_eval.json": [ROW],
            f"{OK}/answer_list.json": ["it"],
            f"{OK}/mscoco_val2014_annotations.json": answers("val2014"),
        },
        COCO_IMAGES,
        {"train", "test"},
    ),
    ("aok_vqa", "default"): (
        {
            f"{AOK}/aokvqa_v1p0_{s}.json": [aokvqa_record(s, "x", 7)]
            for s in ("train", "val", "test")
        },
        [f"coco/images/{s}2017/000000000007.jpg" for s in ("train", "val", "test")],
        {"train", "val", "test"},
    ),
    ("gqa", "default"): (
        {f"{GQ}/{s}_balanced_questions.json": GQA for s in ("train", "val", "testdev", "test")},
        ["gqa/images/n1.jpg"],
        {"train", "val", "testdev", "test"},
    ),
    ("gqa", "balanced_testdev"): (
        {f"{GQ}/{s}_balanced_questions.json": GQA for s in ("train", "testdev", "test")},
        ["gqa/images/n1.jpg"],
        {"train", "val", "test"},
    ),
    ("gqa", "all"): (
        {
            f"{GQ}/{s}_all_questions.json": GQA
            for s in ("val", "testdev", "test", "challenge", "submission")
        }
        | {f"{GQ}/train_all_questions/train_all_questions_{k}.json": GQA for k in range(10)},
        ["gqa/images/n1.jpg"],
        {"train", "val", "testdev", "test", "challenge", "submission"},
    ),
    ("vg_vqa", "default"): (
        {f"{VG}/vg_qa.json": [{**ROW, "image": "image/1.jpg", "answer": "it", "dataset": "vg"}]},
        ["vg/images/image/1.jpg"],
        {"train"},
    ),
    ("vg_vqa", "official"): (
        {
            f"{VG}/question_answers.json": [
                {"id": 1, "qas": [{"qa_id": 1, "question": "Who?", "answer": "Me."}]}
            ],
            f"{VG}/image_data.json": [{"image_id": 1, "url": "https://x/VG_100K_2/1.jpg"}],
        },
        ["vg/images/VG_100K_2/1.jpg"],
        {"train"},
    ),
}


def unpack(key: tuple[str, str]) -> set[str]:
    """Lay out the files of a data set in the cache; returns its splits."""
    cache = Path(os.environ["LAVISLITE_CACHE"])
    files, images, splits = LAYOUTS[key]
    for name, content in files.items():
        write(cache / name, content)
    pictures(cache, *images)
    return splits


@pytest.mark.parametrize(("name", "kind"), LAYOUTS)
def test_every_split_is_found(name: str, kind: str) -> None:
    splits = unpack((name, kind))
    data = lavislite.load_dataset(name, type=kind)
    assert data.keys() == splits
    for split, dataset in data.items():
        assert len(dataset) == 1
        assert dataset[0]["image"].ndim == 3
        assert bool(dataset.annotation(0)["answers"]) or "test" in split
        assert dataset.evaluation == {"coco_vqa": "vqa", "vg_vqa": "vqa"}.get(name, name)
    if kind == "lavis":
        assert data["test"].answer_list[0] == "it"


def test_every_packaged_type_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "*_vqa"]) == 0
    assert main(["datasets", "gqa"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    for name in ("coco_vqa", "ok_vqa", "aok_vqa", "vg_vqa", "gqa"):
        assert set(listed[name].split(", ")) == {kind for n, kind in LAYOUTS if n == name}


def test_validate_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in (("coco_vqa", "default"), ("vg_vqa", "official"), ("gqa", "default")):
        unpack(key)
    project = tmp_path / "my.yaml"
    project.write_text(
        f"user_dir: {TOY}\n"
        "model: {arch: toy}\n"
        "datasets:\n"
        f"  coco_vqa: {{ratio: 1, {SMALL}}}\n"
        f"  vg_vqa: {{type: official, ratio: 2, {SMALL}}}\n"
        f"  gqa: {{ratio: 0, {SMALL}}}\n"
        "run: {task: toy_task, batch_size_train: 1, device: cpu, test_splits: [testdev]}\n"
    )
    arguments = ["validate", "--cfg-path", str(project), "--options", "run.valid_splits=[val]"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for line in ("coco_vqa: train: 1", "vg_vqa: train: 1", "gqa: testdev: 1", "coco_vqa: val: 1"):
        assert f"datasets.{line} samples" in said
    assert main([*arguments, "run.test_splits=[testdve]"]) == 2
    assert "Did you mean 'testdev'" in capsys.readouterr().err
