"""Retrieval: captions to train on, a gallery with any number of captions per picture to score."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_parts import build, draw, write

from lavislite.datasets.image_text import CocoRetrievalBuilder, ImageTextRetrievalBuilder

CAPTIONS = {"0.jpg": ["A.", "b"], "1.jpg": ["c"], "2.jpg": [f"d{k}" for k in range(6)]}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, object]:
    draw(tmp_path / "images", 3)
    rows = [{"image": name, "caption": texts} for name, texts in CAPTIONS.items()]
    flat = [
        {"image": name, "caption": text, "image_id": f"id_{name[0]}"}
        for k in range(6)
        for name, texts in CAPTIONS.items()
        for text in texts[k : k + 1]
    ]
    return {
        "annotations": {
            "test": str(write(tmp_path / "test.json", rows)),
            "flat": str(write(tmp_path / "flat.json", flat)),
        },
        "images": str(tmp_path / "images"),
    }


@pytest.mark.parametrize("builder", [ImageTextRetrievalBuilder, CocoRetrievalBuilder])
@pytest.mark.parametrize("split", ["test", "flat"])  # captions together, or scattered over rows
def test_gallery(builder, split: str, options: dict[str, object], tmp_path: Path) -> None:
    data = build(builder, split, train=False, **options)
    assert data.evaluation == "retrieval"
    assert data.texts == ["a", "b", "c", "d0", "d1", "d2", "d3", "d4", "d5"]
    assert data.image_to_texts == [[0, 1], [2], [3, 4, 5, 6, 7, 8]]
    assert data.text_to_image == [0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert data.image_ids == (["id_0", "id_1", "id_2"] if split == "flat" else list(CAPTIONS))
    assert data.image_paths == [tmp_path / "images" / name for name in CAPTIONS]
    batch = data.collate([data[i] for i in range(len(data))])
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["index"].tolist() == [0, 1, 2]
    assert set(batch) == {"image", "index"}


def test_captions_can_be_written_for_a_gallery(options: dict[str, object]) -> None:
    gallery = build(ImageTextRetrievalBuilder, "test", train=False, **options)
    pictures = gallery.pictures()
    assert pictures.image_ids == gallery.image_ids
    assert pictures.image_paths == gallery.image_paths
    assert [pictures.references(i) for i in range(3)] == list(CAPTIONS.values())
    assert pictures[1]["image"].equal(gallery[1]["image"])


def test_the_training_side_has_captions_and_ids(options: dict[str, object]) -> None:
    data = build(ImageTextRetrievalBuilder, "flat", train=True, **options)
    assert (data.evaluation, len(data)) == ("loss", 9)
    assert data.collate([data[0], data[1]])["image_id"].unique().numel() == 1
    assert {*data[0]} == {"image", "text_input", "image_id", "index"}


def test_unreadable_pictures_leave_the_gallery_with_their_texts(
    options: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "images/1.jpg").write_bytes(b"")
    data = build(ImageTextRetrievalBuilder, "test", train=False, max_bad_fraction=0.5, **options)
    assert data.texts == ["a", "b", "d0", "d1", "d2", "d3", "d4", "d5"]
    assert data.image_to_texts == [[0, 1], [2, 3, 4, 5, 6, 7]]
    assert data.text_to_image == [0, 0, 1, 1, 1, 1, 1, 1]
    assert data.image_ids == ["0.jpg", "2.jpg"]
    assert data.bad_records == 1
    assert data[1]["index"] == 1
    assert "2.jpg" in data.record_id(1)
