"""What all datasets share: bad pictures, batches, ids, sources, options."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_parts import SIZE, build, draw, write
from PIL import Image

from lavislite.common.config import resolve
from lavislite.common.errors import ConfigError, DataError, UserError
from lavislite.datasets.caption import ImageCaptionBuilder
from lavislite.datasets.images import TooManyBadImages
from lavislite.datasets.samples import collate, id_number


def captions(tmp_path: Path, n: int) -> Path:
    names = draw(tmp_path / "images", n)
    return write(tmp_path / "a.json", [{"image": name, "caption": name} for name in names])


def mine(tmp_path: Path, n: int, *, train: bool = True, **options):
    options = {"images": str(tmp_path / "images"), **options}
    annotations = {"train": str(captions(tmp_path, n))}
    return lambda: build(ImageCaptionBuilder, train=train, annotations=annotations, **options)


# ---- bad pictures


def test_ten_percent_missing_trains_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = mine(tmp_path, 20, max_bad_fraction=0.2)
    (tmp_path / "images/3.jpg").unlink()
    (tmp_path / "images/4.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "images/5.jpg").write_bytes((tmp_path / "images/6.jpg").read_bytes()[:200])
    dataset = make()
    with caplog.at_level(logging.WARNING):
        samples = [dataset[i] for i in range(20)]
    assert [i for i, sample in enumerate(samples) if sample is None] == [3, 4, 5]
    assert dataset.bad_records == 3
    for name, reason in (("3.jpg", "no such file"), ("4.jpg", "not a picture"), ("5.jpg", "")):
        assert any(name in m and reason in m for m in caplog.messages), name
    assert len(dataset.collate(samples)["text_input"]) == 17
    assert [dataset[3], dataset.bad_records] == [None, 3]  # counted once


def test_too_many_missing_files_stop_before_any_work(tmp_path: Path) -> None:
    make = mine(tmp_path, 20, max_bad_fraction=0.1)
    for k in (1, 2, 3):
        (tmp_path / f"images/{k}.jpg").unlink()
    with pytest.raises(DataError, match=r"3 of 20 images.*max_bad_fraction: 0.1") as error:
        make()
    assert str(tmp_path / "images/1.jpg") in str(error.value)


def test_too_many_damaged_files_stop_the_loading(tmp_path: Path) -> None:
    dataset = mine(tmp_path, 20, max_bad_fraction=0.05)()
    for k in (1, 2):
        (tmp_path / f"images/{k}.jpg").write_bytes(b"")
    assert dataset[1] is None
    with pytest.raises(TooManyBadImages, match=r"mine/train: 2 of 20 images"):
        _ = dataset[2]


def test_workers_count_together_and_the_message_stays_readable(tmp_path: Path) -> None:
    dataset = mine(tmp_path, 40, max_bad_fraction=0.1)()
    for k in range(0, 40, 4):
        (tmp_path / f"images/{k}.jpg").unlink()
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=dataset.collate
    )
    with pytest.raises(DataError) as error:
        list(loader)
    assert re.search(r"mine/train: \d+ of 40", str(error.value))
    assert "Traceback" not in str(error.value)
    assert dataset.bad_records >= 5  # the other worker may have found more by now


def test_evaluation_leaves_unreadable_pictures_out_from_the_start(tmp_path: Path) -> None:
    make = mine(tmp_path, 10, train=False, max_bad_fraction=0.2)
    (tmp_path / "images/2.jpg").unlink()
    (tmp_path / "images/7.jpg").write_bytes(b"not a picture")
    dataset = make()
    assert len(dataset) == 8
    assert dataset.bad_records == 2
    texts = [dataset[i]["text_input"] for i in range(8)]
    assert [t[0] for t in texts] == ["0", "1", "3", "4", "5", "6", "8", "9"]


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "bmp"])
def test_evaluation_leaves_pictures_cut_short_out(tmp_path: Path, format_: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    make = mine(tmp_path, 10, train=False, max_bad_fraction=0.1)
    noise.save(tmp_path / "images/3.jpg", format_)
    assert len(make()) == 10
    content = (tmp_path / "images/3.jpg").read_bytes()
    (tmp_path / "images/3.jpg").write_bytes(content[: len(content) // 2])
    assert len(make()) == 9


def test_evaluation_leaves_a_png_damaged_within_out(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    make = mine(tmp_path, 10, train=False, max_bad_fraction=0.1)
    noise.save(tmp_path / "images/3.jpg", "png")
    content = bytearray((tmp_path / "images/3.jpg").read_bytes())
    content[2000:2040] = bytes(40)
    (tmp_path / "images/3.jpg").write_bytes(content)
    assert len(make()) == 9


def test_a_processors_own_mistake_is_not_a_bad_picture(tmp_path: Path) -> None:
    dataset = mine(tmp_path, 2)()

    def broken(image):
        raise ValueError("my mistake")

    dataset.vis_processor = broken
    with pytest.raises(ValueError, match=r"my mistake"):
        _ = dataset[0]
    assert dataset.bad_records == 0


# ---- the folder of the pictures


def test_no_such_folder(tmp_path: Path) -> None:
    make = mine(tmp_path, 2, images=str(tmp_path / "image"))
    with pytest.raises(DataError, match=r"no folder .*Did you mean 'images'"):
        make()


def test_wrong_folder_names_the_right_one(tmp_path: Path) -> None:
    make = mine(tmp_path, 3, images=str(tmp_path))
    with pytest.raises(DataError, match="none of the 3 images") as error:
        make()
    assert f"set `images: {tmp_path / 'images'}`" in str(error.value)


def test_names_with_a_folder_too_many(tmp_path: Path) -> None:
    names = draw(tmp_path / "images", 2)
    rows = [{"image": f"val2014/{name}", "caption": "x"} for name in names]
    annotations = {"train": str(write(tmp_path / "a.json", rows))}
    with pytest.raises(DataError, match=r"put 'val2014/' before the name"):
        build(ImageCaptionBuilder, annotations=annotations, images=str(tmp_path / "images"))


def test_names_count_from_the_annotation_file_by_default(tmp_path: Path) -> None:
    names = draw(tmp_path / "data" / "images", 2)
    rows = [{"image": f"images/{name}", "caption": "x"} for name in names]
    annotations = {"train": str(write(tmp_path / "data" / "a.json", rows))}
    dataset = build(ImageCaptionBuilder, annotations=annotations)
    assert dataset[1]["image"].shape == (3, 8, 8)
    annotations = {"train": str(write(tmp_path / "elsewhere" / "a.json", rows))}
    with pytest.raises(DataError, match=r"`images:` is not set"):
        build(ImageCaptionBuilder, annotations=annotations)


def test_the_cache_is_a_second_working_directory(tmp_path: Path) -> None:
    names = draw(tmp_path / "cache" / "my" / "images", 2)
    write(tmp_path / "cache/my/a.json", [{"image": name, "caption": "x"} for name in names])
    dataset = build(ImageCaptionBuilder, annotations={"train": "my/a.json"}, images="my/images")
    assert dataset.files.path(0) == tmp_path / "cache/my/images/0.jpg"


# ---- sources


def test_downloads_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = draw(tmp_path / "images", 2)
    file = write(tmp_path / "a.json", [{"image": name, "caption": "x"} for name in names])
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    source = {"path": "not/there.json", "url": file.as_uri(), "md5": md5}
    images = str(tmp_path / "images")
    builder = ImageCaptionBuilder(
        ImageCaptionBuilder.Config(**SIZE, annotations={"train": source}, images=images), name="x"
    )
    builder.prepare()
    assert len(builder.build("train", train=True)) == 2
    builder.cfg.annotations["train"] = {**source, "path": str(file), "md5": "0" * 32}
    builder.prepare()  # a local copy is the user's own business
    builder.cfg.annotations["train"] = {**source, "md5": "0" * 32}
    with pytest.raises(UserError, match=r"expected MD5 000"):
        builder.prepare()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"ulr": "http://x"}, "annotations.train.ulr.*Did you mean 'url'"),
        ({"md5": "0"}, "expected `path` or `url`"),
        ([], "at least one file"),
        (3, "saw 3"),
    ],
)
def test_wrong_sources_are_named(entry: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(ImageCaptionBuilder, annotations={"train": entry})


# ---- options


def test_any_split_names(tmp_path: Path) -> None:
    file = str(captions(tmp_path, 2))
    cfg = ImageCaptionBuilder.Config(
        **SIZE,
        annotations={"early": file, "late": [file, file], "none": None},
        images={"early": str(tmp_path / "images"), "late": str(tmp_path / "images")},
    )
    builder = ImageCaptionBuilder(cfg, name="x")
    assert builder.splits() == ["early", "late"]
    assert [len(builder.build(split, train=True)) for split in ("early", "late")] == [2, 4]
    with pytest.raises(ConfigError, match=r"datasets.x has no split 'lat'. Did you mean 'late'"):
        builder.build("lat", train=True)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"datasets.mine.max_bad_fraction"):
        mine(tmp_path, 1, max_bad_fraction=2.0)()
    with pytest.raises(ConfigError, match=r"captions_per_image.*Did you mean 'random'"):
        mine(tmp_path, 1, captions_per_image="rnadom")()
    with pytest.raises(ConfigError, match=r"vis_processor.tarin.*Did you mean 'train'"):
        mine(tmp_path, 1, vis_processor={"tarin": {"name": "blip_image_eval"}})()
    with pytest.raises(ConfigError, match=r"datasets.mine.text_processor.train.name"):
        mine(tmp_path, 1, text_processor={"train": {"name": "blip_captoin"}})()
    with pytest.raises(ConfigError, match=r"datasets.mine.images: no folder for the split 'train'"):
        mine(tmp_path, 1, images={"val": "x"})()


def test_packaged_defaults_and_own_names() -> None:
    own = {"builder": "image_caption", "annotations": {"fit": "x.csv"}, "columns": {"image": "f"}}
    project = {
        "model": {"arch": "tiny_vit_attributes"},
        "datasets": {
            "coco_caption": {"annotations": {"test": None, "train": "mine.json"}},
            "coco_retrieval": {},
            "my_shop": own,
        },
    }
    datasets = resolve(project, origin="test").datasets
    coco = datasets["coco_caption"]
    assert coco.annotations["train"] == "mine.json"
    assert coco.annotations["val"]["md5"] == "b273847456ef5580e33713b1f7de52a0"
    assert coco.annotations["test"] is None
    assert coco.images == datasets["coco_retrieval"].images == "coco/images"
    assert datasets["my_shop"].captions_per_image == "all"
    assert datasets["my_shop"].vis_processor["eval"] == {"name": "blip_image_eval"}


# ---- batches and ids


def test_collate() -> None:
    samples = [
        {"image": torch.full((2,), float(i)), "text_input": f"t{i}", "image_id": 2**61 + i}
        for i in range(3)
    ]
    batch = collate([None, samples[0], None, *samples[1:]])
    assert batch["image"].shape == (3, 2)
    assert batch["text_input"] == ["t0", "t1", "t2"]
    assert batch["image_id"].tolist() == [2**61, 2**61 + 1, 2**61 + 2]
    assert collate([None, None]) == {}
    with pytest.raises(DataError, match=r"same keys"):
        collate([samples[0], {"image": samples[0]["image"]}])
    with pytest.raises(DataError, match=r"`image` has different shapes.*\(2,\), \(3,\)"):
        collate([{"image": torch.zeros(2)}, {"image": torch.zeros(3)}])


def test_ids_are_stable_and_belong_to_their_dataset() -> None:
    assert id_number("coco", "coco_1") == id_number("coco", "coco_1") < 2**62
    numbers = {id_number(name, str(i)) for name in ("a", "b") for i in range(1000)}
    assert len(numbers) == 2000
    assert id_number("a", "1") == 3702356476170522816


def test_one_id_for_two_pictures_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "images", 2)
    rows = [{"image": f"{k}.jpg", "caption": "x", "image_id": 1} for k in range(2)]
    annotations = {"train": str(write(tmp_path / "a.json", rows))}
    dataset = build(ImageCaptionBuilder, annotations=annotations, images=str(tmp_path / "images"))
    assert len(dataset) == 2
    assert "image_id 1 stands for different pictures" in caplog.text
