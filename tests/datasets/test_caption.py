"""Caption datasets: samples, ids, and the choice of captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dataset_parts import SIZE, build, draw, write
from PIL import Image

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.caption import CocoCaptionBuilder, ImageCaptionBuilder


@pytest.fixture
def annotations(tmp_path: Path) -> dict[str, str]:
    """Three pictures with 2, 1 and 6 captions, in LAVIS's two shapes."""
    draw(tmp_path / "images", 3)
    captions = {0: ["Zero A.", "zero b"], 1: ["one"], 2: [f"two {k}" for k in range(6)]}
    rows = [
        {"image": f"{k}.jpg", "caption": text, "image_id": f"coco_{k}"}
        for k, texts in captions.items()
        for text in texts
    ]
    lists = [{"image": f"{k}.jpg", "caption": texts} for k, texts in captions.items()]
    return {
        "train": str(write(tmp_path / "train.json", rows)),
        "val": str(write(tmp_path / "val.json", lists)),
    }


def dataset(annotations: dict[str, str], split: str = "train", *, train: bool = True, **options):
    images = str(Path(annotations["train"]).parent / "images")
    return build(
        ImageCaptionBuilder, split, train=train, annotations=annotations, images=images, **options
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("train", [True, False])
def test_one_sample_per_caption(annotations: dict[str, str], split: str, train: bool) -> None:
    data = dataset(annotations, split, train=train)
    assert data.evaluation == "loss"
    samples = [data[i] for i in range(len(data))]
    assert [s["text_input"] for s in samples] == [
        *("zero a", "zero b", "one", "two 0", "two 1", "two 2", "two 3", "two 4", "two 5")
    ]
    assert [s["index"] for s in samples] == list(range(9))
    ids = [s["image_id"] for s in samples]
    assert [ids.index(i) for i in ids] == [0, 0, 2, 3, 3, 3, 3, 3, 3]
    batch = data.collate(samples)
    assert batch["image"].shape == (9, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert batch["image_id"].tolist() == ids
    assert batch["index"].tolist() == list(range(9))
    assert list(data.captions()) == batch["text_input"]


def test_the_picture_belongs_to_the_caption(annotations: dict[str, str]) -> None:
    data = dataset(annotations)
    for index, picture in ((1, 0), (2, 1), (8, 2)):
        path = data.files.path(picture)
        assert torch.equal(data[index]["image"], data.vis_processor(Image.open(path)))
        assert path.name in data.record_id(index)


def test_random_captions_make_one_sample_per_picture(annotations: dict[str, str]) -> None:
    data = dataset(annotations, captions_per_image="random")
    assert len(data) == 3
    torch.manual_seed(0)
    first = [data[2]["text_input"] for _ in range(40)]
    torch.manual_seed(0)
    assert [data[2]["text_input"] for _ in range(40)] == first
    assert set(first) == {f"two {k}" for k in range(6)}
    assert data[1]["text_input"] == "one"
    evaluated = dataset(annotations, train=False, captions_per_image="random")
    assert len(evaluated) == 9


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_with_all_their_captions_as_they_were_written(
    annotations: dict[str, str], split: str
) -> None:
    data = dataset(annotations, split, train=False)
    pictures = data.pictures()
    assert [pictures.references(k) for k in range(len(pictures))] == [
        ["Zero A.", "zero b"], ["one"], [f"two {k}" for k in range(6)]
    ]  # fmt: skip
    expected = [f"coco_{k}" for k in range(3)] if split == "train" else ["0.jpg", "1.jpg", "2.jpg"]
    assert pictures.image_ids == expected
    assert [path.name for path in pictures.image_paths] == ["0.jpg", "1.jpg", "2.jpg"]
    assert torch.equal(pictures[2]["image"], data[8]["image"])
    batch = pictures.collate([pictures[k] for k in range(3)])
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["index"].tolist() == [0, 1, 2]
    assert "1.jpg" in pictures.record_id(1)


def test_pictures_leave_out_those_that_are_missing(annotations: dict[str, str]) -> None:
    (Path(annotations["train"]).parent / "images/1.jpg").unlink()
    pictures = dataset(annotations, "val", train=False, max_bad_fraction=0.5).pictures()
    assert pictures.image_ids == ["0.jpg", "2.jpg"]
    assert pictures.references(1)[0] == "two 0"


def test_how_pretraining_evaluates_is_an_option(annotations: dict[str, str]) -> None:
    assert dataset(annotations, train=False, evaluation="caption").evaluation == "caption"
    with pytest.raises(ConfigError, match=r"datasets.mine.evaluation: .* 'captions'.*'caption'"):
        dataset(annotations, evaluation="captions")


def test_ids_agree_between_splits_but_not_between_datasets(annotations: dict[str, str]) -> None:
    images = str(Path(annotations["train"]).parent / "images")
    cfg = ImageCaptionBuilder.Config(**SIZE, annotations=annotations, images=images)
    one, two = (ImageCaptionBuilder(cfg, name=n).build("train", train=True) for n in ("x", "y"))
    again = ImageCaptionBuilder(cfg, name="x").build("train", train=True)
    assert one[0]["image_id"] == again[0]["image_id"] != two[0]["image_id"]


def test_an_image_folder_with_the_suffix_in_its_names(tmp_path: Path) -> None:
    draw(tmp_path / "images", 1)
    (tmp_path / "images/0.jpg").rename(tmp_path / "images/page_jpg.jpg")
    rows = [{"image": "page_jpg.jpg", "caption": "a page"}]
    annotations = {"train": str(write(tmp_path / "csv_files/a.json", rows))}
    data = build(ImageCaptionBuilder, annotations=annotations, images=str(tmp_path / "images"))
    assert data[0]["text_input"] == "a page"


def test_camera_orientation_is_respected(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "images/0.jpg", exif=exif, quality=95)
    annotations = {"a": str(write(tmp_path / "a.json", [{"image": "0.jpg", "caption": "x"}]))}
    data = build(ImageCaptionBuilder, "a", annotations=annotations, images=str(tmp_path / "images"))
    pixels = data[0]["image"][0]
    assert pixels[:, -1].mean() > pixels[:, 0].mean()


def test_edited_annotations_count(annotations: dict[str, str], tmp_path: Path) -> None:
    assert len(dataset(annotations)) == 9
    write(tmp_path / "train.json", [{"image": "0.jpg", "caption": "new"}])
    assert dataset(annotations)[0]["text_input"] == "new"


def test_coco_without_pictures_says_where_to_get_them(annotations: dict[str, str]) -> None:
    cfg = CocoCaptionBuilder.Config(**SIZE, annotations=annotations, images="coco/images")
    with pytest.raises(DataError, match=r"no folder coco/images .*lavislite download coco_caption"):
        CocoCaptionBuilder(cfg, name="coco_caption").build("val", train=False)
