"""Tiny files of questions, in each data set's official layout and in LAVIS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_parts import draw, write


def ten(*answers: str) -> list[dict[str, Any]]:
    """What ten annotators answered, as the VQA server has it."""
    return [
        {"answer": answers[n % len(answers)], "answer_confidence": "yes", "answer_id": n + 1}
        for n in range(10)
    ]


def pictures(folder: Path, *names: str) -> Path:
    """A picture under each name, such as "val2014/a.jpg"; returns `folder`."""
    drawn = draw(folder / "drawn", len(names))
    for here, name in zip(drawn, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "drawn" / here).rename(folder / name)
    (folder / "drawn").rmdir()
    return folder


def server_files(tmp_path: Path, subset: str = "val2014") -> dict[str, str]:
    """Two pictures, three questions, in the VQA server's files."""
    names = [f"{subset}/COCO_{subset}_{k:012d}.jpg" for k in (7, 8)]
    pictures(tmp_path / "images", *(name.replace("test-dev", "test") for name in names))
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
    top = {"info": {}, "license": {"name": "CC BY 4.0"}, "data_subtype": subset}
    return {
        "questions": str(write(tmp_path / "q.json", {**top, "questions": questions})),
        "annotations": str(write(tmp_path / "a.json", {**top, "annotations": annotations})),
        "images": str(tmp_path / "images"),
    }


def gqa_record(image: str, question: str, answer: str | None, **more: Any) -> dict[str, Any]:
    """A question as GQA's files have it; those for the test server have no answers."""
    record = {"imageId": image, "question": question, "isBalanced": True}
    if answer is None:
        return record
    record |= {
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
        "groups": {"global": None, "local": "15-wall"},
        "entailed": ["202"],
        "equivalent": ["201"],
        "types": {"structural": "query", "semantic": "attr", "detailed": "color"},
        "annotations": {"question": {"0": "17"}, "answer": {}, "fullAnswer": {}},
        "semantic": [{"operation": "select", "dependencies": [], "argument": "wall (16)"}],
        "semanticStr": "select: wall (16)",
    }
    return record | more


def aokvqa_record(split: str, question_id: str, image_id: int = 461751) -> dict[str, Any]:
    """A question as A-OKVQA's files have it; the test split has no answers."""
    record: dict[str, Any] = {
        "split": split,
        "image_id": image_id,
        "question_id": question_id,
        "question": "What is he by?",
        "choices": ["white trucks", "foliage", "tall statue", "dock"],
        "difficult_direct_answer": False,
    }
    if split == "test":
        return record
    return record | {
        "correct_choice_idx": 1,
        "direct_answers": ["ocean", "ocean", "shrub", "beach", "surfboard"] * 2,
        "rationales": ["He is near plants.", "Because.", "See the picture."],
    }
