"""NoCaps's official files: references, domains, and a test split without captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, draw, write

from lavislite.common.errors import DataError
from lavislite.datasets.nocaps import NoCapsBuilder

DOMAINS = ["in-domain", "near-domain", "out-domain"]


def official(n: int = 3, *, domains: bool = True, captions: int = 10) -> dict[str, Any]:
    images = [
        {"id": k, "file_name": f"{k}.jpg", "open_images_id": f"{k:016x}"}
        | ({"domain": DOMAINS[k % 3]} if domains else {})
        for k in range(n)
    ]
    annotations = [
        {"image_id": k, "id": k * captions + c, "caption": f"Picture {k}, caption {c}."}
        for c in range(captions)
        for k in range(n)
    ]
    return {"licenses": [], "info": {}, "images": images, "annotations": annotations}


def nocaps(tmp_path: Path, content: Any, *, train: bool = False, n: int = 3):
    draw(tmp_path / "images", n)
    annotations = {"val": str(write(tmp_path / "val.json", content))}
    return build(
        *(NoCapsBuilder, "val"),
        train=train,
        annotations=annotations,
        images={"val": str(tmp_path / "images")},
    )


def test_pictures_with_ten_references_and_a_domain(tmp_path: Path) -> None:
    data = nocaps(tmp_path, official())
    assert data.evaluation == "caption"
    pictures = data.pictures()
    assert len(pictures) == 3
    assert pictures.image_ids == ["0", "1", "2"]
    assert pictures.references(1) == [f"Picture 1, caption {c}." for c in range(10)]
    assert data.domains == dict(zip("012", DOMAINS, strict=True))
    assert pictures[2]["image"].shape == (3, 8, 8)
    assert pictures[2]["index"] == 2
    assert pictures.image_paths[2] == tmp_path / "images/2.jpg"


def test_domains_may_be_missing(tmp_path: Path) -> None:
    data = nocaps(tmp_path, official(domains=False))
    assert data.domains == {}
    assert len(data.pictures().references(0)) == 10


def test_a_split_without_captions_is_for_the_server(tmp_path: Path) -> None:
    content = official()
    del content["annotations"]
    data = nocaps(tmp_path, content)
    assert [data.pictures().references(k) for k in range(3)] == [[], [], []]
    with pytest.raises(DataError, match="mine/val has no captions: it cannot be trained on"):
        nocaps(tmp_path, content, train=True)


@pytest.mark.parametrize("prefix", ["", "val/"])
def test_the_list_that_lavis_prepared(tmp_path: Path, prefix: str) -> None:
    rows = [{"image": f"{prefix}{k}.jpg", "img_id": str(k)} for k in range(3)]
    pictures = nocaps(tmp_path, rows).pictures()
    assert pictures.image_ids == ["0", "1", "2"]
    assert pictures[0] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][4].pop("caption"), "annotation 5: expected `caption`"),
        (lambda c: c["annotations"][0].update(image_id=9), "annotation 1: image_id 9 is not in"),
        (lambda c: c["images"][1].pop("file_name"), "image 2: expected `file_name`"),
        (lambda c: c["images"].clear(), "holds no images"),
        (lambda c: c.pop("images"), "expected the official NoCaps file"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, change: Any, message: str) -> None:
    content = official()
    change(content)
    with pytest.raises(DataError, match=message):
        nocaps(tmp_path, content)


def test_missing_pictures_say_where_to_get_them(tmp_path: Path) -> None:
    annotations = {"val": str(write(tmp_path / "val.json", official()))}
    with pytest.raises(DataError, match="lavislite download nocaps"):
        build(
            NoCapsBuilder, "val", train=False, annotations=annotations, images=str(tmp_path / "x")
        )
