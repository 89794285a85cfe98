"""COCO, Flickr30k, Visual Genome and lists of the web, as released and as LAVIS prepared them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dataset_parts import build, draw, write

from lavislite.common.config import resolve
from lavislite.common.errors import DataError
from lavislite.common.packaged import packaged_defaults
from lavislite.common.transfer import picture_name
from lavislite.datasets.annotations import read_records
from lavislite.datasets.caption import CocoCaptionBuilder, VGCaptionBuilder
from lavislite.datasets.flickr30k import Flickr30kBuilder
from lavislite.datasets.image_text import CocoRetrievalBuilder
from lavislite.datasets.nocaps import NoCapsBuilder
from lavislite.datasets.web import (
    ConceptualCaption3MBuilder,
    ConceptualCaption12MBuilder,
    SBUCaptionBuilder,
)
from lavislite.download.lists import read_rows

# ---- COCO

SIX = [f"caption {k}" for k in range(6)]
TRAIN, VAL = "train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000522418.jpg"


def karpathy_image(filepath: str, name: str, split: str, captions: list[str], **more: Any) -> dict:
    sentences = [{"tokens": t.split(), "raw": t, "imgid": 0, "sentid": 0} for t in captions]
    path = {"filepath": filepath} if filepath else {}
    return {**path, "filename": name, "imgid": 0, "split": split, "sentences": sentences, **more}


def coco_files(tmp_path: Path) -> dict[str, Any]:
    official = {
        "info": {},
        "licenses": [],
        "images": [{"id": 522418, "file_name": VAL.split("/")[1], "height": 1, "width": 1}],
        "annotations": [{"image_id": 522418, "id": k, "caption": t} for k, t in enumerate(SIX)],
    }
    karpathy = {
        "dataset": "coco",
        "images": [
            karpathy_image("train2014", TRAIN.split("/")[1], "train", ["one"], cocoid=1),
            karpathy_image("val2014", VAL.split("/")[1], "restval", SIX, cocoid=522418),
        ],
    }
    lavis_train = [{"caption": t, "image": VAL, "image_id": "coco_522418"} for t in SIX]
    return {
        "official": str(write(tmp_path / "captions_val2014.json", official)),
        "train": str(write(tmp_path / "dataset_coco.json", karpathy)),
        "lavis_train": str(write(tmp_path / "coco_karpathy_train.json", lavis_train)),
        "lavis_val": str(
            write(tmp_path / "coco_karpathy_val.json", [{"image": VAL, "caption": SIX}])
        ),
    }


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    images = tmp_path / "images"
    for name in (TRAIN, VAL):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        draw(images / "x", 1)
        (images / "x/0.jpg").rename(images / name)
    folders = {name: str(images) for name in ("train", "lavis_train", "lavis_val")}
    return {
        "annotations": coco_files(tmp_path),
        "images": {**folders, "official": str(images / "val2014")},
    }


@pytest.mark.parametrize(
    ("split", "image_id", "n"),
    [
        ("official", "522418", 6),
        ("train", "522418", 7),
        ("lavis_train", "coco_522418", 6),
        ("lavis_val", VAL, 6),
    ],
)
def test_coco_in_every_layout(split: str, image_id: str, n: int, coco: dict[str, Any]) -> None:
    data = build(CocoCaptionBuilder, split, train=split != "lavis_val", **coco)
    assert [data[i]["text_input"] for i in range(len(data))] == ["one"] * (n - 6) + SIX
    assert [str(p).endswith("522418.jpg") for p in data.pictures().image_paths][-1]
    assert data.pictures().image_ids[-1] == image_id
    batch = data.collate([data[i] for i in range(n)])
    assert batch["image_id"].dtype.is_floating_point is False
    assert batch["image_id"][-6:].unique().numel() == 1
    gallery = build(CocoRetrievalBuilder, split, train=False, **coco)
    assert gallery.image_to_texts[-1] == list(range(n - 6, n))
    assert gallery.pictures().references(len(gallery) - 1) == SIX


def test_several_files_of_different_layouts_in_one_split(coco: dict[str, Any]) -> None:
    files = coco["annotations"]
    both = {"annotations": {"train": [files["lavis_val"], files["train"]]}}
    data = build(CocoCaptionBuilder, images=coco["images"]["train"], **both)
    # The same file with and without an id stands for two pictures.
    assert [len(data), len(data.table)] == [13, 3]


# ---- files of other data sets

QUESTION = {"question_id": 1, "question": "Is it?", "image_id": 5}
OTHERS: dict[str, tuple[Any, list[str]]] = {
    "vqa questions": ({"questions": [QUESTION], "license": {}}, ["VQAv2", "coco_vqa"]),
    "vqa answers": (
        {"annotations": [{"question_id": 1, "answers": [], "image_id": 5}], "info": {}},
        ["answers of VQAv2", "coco_vqa"],
    ),
    "lavis vqa": (
        [{"question_id": 1, "question": "Is it?", "answer": ["yes"], "image": "x.jpg"}],
        ["questions", "image_vqa", "coco_vqa"],
    ),
    "vg questions": ([{"id": 1, "qas": []}], ["Visual Genome's questions", "vg_vqa"]),
    "gqa": ({"201": {"imageId": "n1", "question": "Is it?", "answer": "no"}}, ["GQA", "gqa"]),
    "lavis gqa": (
        [{"question": "?", "answer": "no", "image": "n1.jpg", "fullAnswer": "No."}],
        ["GQA", "`builder: gqa`"],
    ),
    "aokvqa": ([{"question": "?", "choices": [], "image": "x"}], ["A-OKVQA", "aok_vqa"]),
    "nocaps": (
        {
            "images": [{"id": 0, "open_images_id": "00", "file_name": "00.jpg"}],
            "annotations": [{"image_id": 0, "id": 0, "caption": "x"}],
        },
        ["NoCaps", "builder: nocaps"],
    ),
    "nocaps test": (
        {"images": [{"id": 0, "open_images_id": "00", "file_name": "00.jpg"}]},
        ["NoCaps", "builder: nocaps"],
    ),
    "lavis nocaps": ([{"image": "val/0.jpg", "img_id": "0"}], ["NoCaps", "builder: nocaps"]),
    "references": (
        {"images": [{"id": 3}], "annotations": [{"image_id": 3, "id": 1, "caption": "x"}]},
        ["references", "coco_karpathy_val_gt.json", "not needed", "give coco_karpathy_val.json"],
    ),
    "objects": (
        {
            "images": [{"id": 3, "file_name": "x.jpg"}],
            "annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}],
        },
        ["COCO's objects", "captions_val2014.json"],
    ),
    "image info": ({"images": [{"id": 3, "file_name": "x.jpg"}]}, ["without captions"]),
    "sbu": ({"image_urls": ["http://x"], "captions": ["x"]}, ["SBU", "sbu_caption"]),
    "urls": ([{"url": "http://x", "caption": "x"}], ["on the web", "conceptual_caption_3m"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_data_sets_are_recognised(case: str, tmp_path: Path) -> None:
    content, words = OTHERS[case]
    path = write(tmp_path / "wrong.json", content)
    with pytest.raises(DataError) as error:
        list(read_records(path))
    for word in [str(path), *words]:
        assert word in str(error.value), str(error.value)
    assert "looks like" in str(error.value)


def test_nocaps_recognises_them_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", OTHERS["vqa questions"][0])
    with pytest.raises(DataError, match=r"expected the official NoCaps file.*VQAv2"):
        build(NoCapsBuilder, annotations={"train": str(path)}, images=str(tmp_path))


# ---- captions that are hard to carry

HARD = ["a\u2028b\x85c\x0bd", "👩‍👩‍👧 שלום عالم", "x" * 10_000, 'tab\there "quoted"', "\ufeffmark"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_hard_captions_survive(suffix: str, tmp_path: Path) -> None:
    import csv

    draw(tmp_path / "images", 1)
    path = tmp_path / f"a.{suffix}"
    rows = [{"image": "0.jpg", "caption": text} for text in HARD]
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
        path.write_text(text, encoding="utf-8", newline="\n")
    data = build(
        CocoCaptionBuilder, annotations={"train": str(path)}, images=str(tmp_path / "images")
    )
    assert list(data.table.texts) == HARD


# ---- Flickr30k

FLICKR = {"10.jpg": ["A.", "b", "c", "d", "e"], "11.jpg": ["f"] * 5, "12.jpg": ["g"] * 5}


@pytest.fixture
def flickr(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "images/flickr30k-images"
    for old, new in zip(draw(folder, 3), FLICKR, strict=True):
        (folder / old).rename(folder / new)
    splits = dict(zip(FLICKR, ("train", "val", "test"), strict=True))
    images = [karpathy_image("", name, splits[name], texts) for name, texts in FLICKR.items()]
    token = [
        f"{name}#{k}\t{text}" for name, texts in FLICKR.items() for k, text in enumerate(texts)
    ]
    (tmp_path / "results_20130124.token").write_text("\n".join(token) + "\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("12\n10.jpg\n")
    return {
        "karpathy": str(write(tmp_path / "k.json", {"images": images, "dataset": "flickr30k"})),
        "lavis": str(
            write(
                tmp_path / "test.json",
                [{"image": f"flickr30k-images/{n}", "caption": t} for n, t in FLICKR.items()],
            )
        ),
        "lavis_train": str(
            write(
                tmp_path / "train.json",
                [{"image": "flickr30k-images/10.jpg", "caption": "Four men.", "image_id": 1}],
            )
        ),
        "token": str(tmp_path / "results_20130124.token"),
        "list": str(tmp_path / "test.txt"),
        "images": str(tmp_path / "images"),
    }


def flickr30k(flickr: dict[str, str], files: Any, split: str = "test", train: bool = False):
    options = {"annotations": {split: files}, "images": flickr["images"]}
    return build(Flickr30kBuilder, split, train=train, **options)


def test_flickr30k_gallery(flickr: dict[str, str]) -> None:
    for data, names in (
        (flickr30k(flickr, flickr["lavis"]), ["10", "11", "12"]),
        (flickr30k(flickr, flickr["karpathy"]), ["12"]),
        (flickr30k(flickr, [flickr["token"], flickr["list"]]), ["10", "12"]),
    ):
        assert data.evaluation == "retrieval"
        assert [path.stem for path in data.image_paths] == names
        assert [len(texts) for texts in data.image_to_texts] == [5] * len(names)
        assert all(data[i] is not None for i in range(len(data)))
    assert data.pictures().references(0) == FLICKR["10.jpg"]  # captioning compares with them


def test_flickr30k_training(flickr: dict[str, str]) -> None:
    data = flickr30k(flickr, flickr["lavis_train"], "train", train=True)
    assert data[0]["text_input"] == "four men"
    data = flickr30k(flickr, flickr["karpathy"], "train", train=True)
    assert (len(data), data[0]["image"].shape[0]) == (5, 3)
    assert len(flickr30k(flickr, flickr["token"], "everything", train=True)) == 15


def test_flickr30k_token_file_has_no_splits(flickr: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"all splits.*annotations.val: \[results_20130124.token"):
        flickr30k(flickr, flickr["token"], "val")


def test_flickr30k_broken_token_file(flickr: dict[str, str]) -> None:
    Path(flickr["token"]).write_text("10.jpg#0 no tab\n")
    with pytest.raises(DataError, match=r"line 1: expected `name.jpg#0<TAB>caption`"):
        flickr30k(flickr, flickr["token"], "all")


# ---- Visual Genome


@pytest.mark.parametrize("layout", ["image", "VG_100K"])
def test_vg_official_and_lavis_in_both_layouts(layout: str, tmp_path: Path) -> None:
    second = "image" if layout == "image" else "VG_100K_2"
    for folder, name in ((layout, "1.jpg"), (second, "2.jpg")):
        draw(tmp_path / "x", 1)
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "x/0.jpg").rename(tmp_path / "images" / folder / name)
    region = {"region_id": 9, "x": 0, "y": 0, "width": 1, "height": 1, "synsets": []}
    official = [
        {"id": 1, "regions": [{**region, "phrase": "a cat"}, {**region, "phrase": "a table"}]},
        {"image_id": 2, "regions": [{**region, "phrase": "The clock."}, {**region, "phrase": " "}]},
        {"id": 3, "regions": []},
    ]
    lavis = [
        {"image": "image/1.jpg", "caption": "a cat", "image_id": 1},
        {"image": "image/1.jpg", "caption": "a table", "image_id": 1},
        {"image": "image/2.jpg", "caption": "The clock.", "image_id": 2},
    ]
    for content in (official, lavis):
        annotations = {"train": str(write(tmp_path / "a.json", content))}
        data = build(VGCaptionBuilder, annotations=annotations, images=str(tmp_path / "images"))
        assert [data[i]["text_input"] for i in range(3)] == ["a cat", "a table", "the clock"]
        assert data[0]["image_id"] == data[1]["image_id"] != data[2]["image_id"]


def test_vg_broken_regions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"id": 1, "regions": [{"text": "x"}]}])
    with pytest.raises(DataError, match=r"image 1: incomplete record: KeyError\('phrase'\)"):
        list(read_records(path))


# ---- lists of the web

URLS = [f"http://x.org/{k}.jpg?a=é" for k in range(5)]
THERE = (0, 1, 3)


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A folder in which two of five pictures are missing."""
    folder = tmp_path / "images"
    names = draw(folder, len(THERE))
    for name, k in zip(names, THERE, strict=True):
        (folder / name).rename(folder / picture_name(k, URLS[k]))
    return folder


WEB = ["zero\u2028line", "one\x85", "two", 'three "big', "four"]


def test_picture_names_are_those_of_lavis() -> None:
    import zlib

    assert picture_name(1, "http://a/b") == f"1_{zlib.crc32(b'http://a/b')}.jpg"


@pytest.mark.parametrize("case", ["cc3m", "cc12m", "header", "sbu", "urls", "lavis", "absolute"])
def test_rows_whose_picture_is_there(
    case: str, web: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = list(zip(URLS, WEB, strict=True))
    named = [(picture_name(k, url), text) for k, (url, text) in enumerate(pairs)]
    sbu = {"image_urls": URLS, "user_ids": ["u"] * 5, "captions": WEB}
    away = "/export/home/images/"
    files = {
        "cc3m": ("a.tsv", "".join(f"{text}\t{url}\n" for url, text in pairs)),
        "cc12m": ("a.tsv", "".join(f"{url}\t{text}\n" for url, text in pairs)),
        "header": ("a.tsv", "url\tcaption\n" + "".join(f"{u}\t{t}\n" for u, t in pairs)),
        "sbu": ("sbu-captions-all.json", json.dumps(sbu)),
        "urls": ("a.json", json.dumps([{"url": u, "caption": t} for u, t in pairs])),
        "lavis": (
            "a.json",
            json.dumps([{"image": n, "caption": t, "url": "http://x"} for n, t in named]),
        ),
        "absolute": ("a.json", json.dumps([{"image": away + n, "caption": t} for n, t in named])),
    }
    name, content = files[case]
    (tmp_path / name).write_text(content, encoding="utf-8", newline="\n")
    builder = {"sbu": SBUCaptionBuilder, "cc12m": ConceptualCaption12MBuilder}
    with caplog.at_level(logging.INFO):
        data = build(
            builder.get(case, ConceptualCaption3MBuilder),
            annotations={"train": str(tmp_path / name)},
            images=str(web),
        )
    assert list(data.table.texts) == [WEB[k] for k in THERE]
    assert [data.files.path(k) for k in range(3)] == [web / named[k][0] for k in THERE]
    assert all(data[i] is not None for i in range(3))
    assert "3 of 5 rows are used" in caplog.text


def test_a_blank_line_counts_as_a_row(web: Path, tmp_path: Path) -> None:
    k = THERE[-1]
    lines = ["" if n == 1 else f"{WEB[n]}\t{URLS[n]}" for n in range(k + 1)]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    rows = [row.name for row in read_rows(tmp_path / "a.tsv", ("caption", "url"))]
    data = build(
        ConceptualCaption3MBuilder,
        annotations={"train": str(tmp_path / "a.tsv")},
        images=str(web),
    )
    assert rows[-1] == data.files.path(len(data) - 1).name == picture_name(k, URLS[k])


def test_absolute_paths_that_are_right_are_used_as_they_are(web: Path, tmp_path: Path) -> None:
    rows = [{"image": str(web / picture_name(3, URLS[3])), "caption": "x"}]
    (tmp_path / "elsewhere").mkdir()
    data = build(
        ConceptualCaption3MBuilder,
        annotations={"train": str(write(tmp_path / "a.json", rows))},
        images=str(tmp_path / "elsewhere"),
    )
    assert data.files.path(0) == web / picture_name(3, URLS[3])


def test_more_pictures_later_are_noticed(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lavislite.datasets.packed.SMALL", 0)
    (tmp_path / "a.tsv").write_text("".join(f"{u}\tx\n" for u in URLS), encoding="utf-8")
    options = {"annotations": {"train": str(tmp_path / "a.tsv")}, "images": str(web)}
    assert len(build(ConceptualCaption12MBuilder, **options)) == 3
    (web / picture_name(0, URLS[0])).rename(web / picture_name(2, URLS[2]))
    draw(tmp_path / "x", 1)
    (tmp_path / "x/0.jpg").rename(web / picture_name(4, URLS[4]))
    data = build(ConceptualCaption12MBuilder, **options)
    assert [Path(name).name.split("_")[0] for name in data.table.paths] == ["1", "2", "3", "4"]


def test_blank_captions_of_the_web_are_left_out(web: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"{URLS[0]}\t \n{URLS[1]}\tx\n", encoding="utf-8")
    data = build(
        ConceptualCaption12MBuilder,
        annotations={"train": str(tmp_path / "a.tsv")},
        images=str(web),
    )
    assert list(data.table.texts) == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "http://x\tok\nno tab\n", "line 2: expected a URL and a caption"),
        ("a.json", '{"image_urls": ["http://a"], "captions": []}', "1 image_urls and 0 captions"),
        ("a.json", '[{"url": "http://a", "caption": "x"}, 3]', "record 2.*saw 3"),
        ("a.tsv", "http://nowhere\tx\n", "none of the 1 pictures is in .*lavislite download"),
        ("a.json", '[{"image": "x.jpg", "caption": 3}]', "record 1: caption: .*saw 3"),
        ("a.tsv", "some\ttable\n1\t2\n", "no `image` among the keys"),
    ],
)
def test_broken_lists(name: str, content: str, words: str, web: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        build(SBUCaptionBuilder, annotations={"train": str(tmp_path / name)}, images=str(web))


def test_no_folder_of_pictures(tmp_path: Path) -> None:
    annotations = {"train": str(write(tmp_path / "a.json", [{"image": "x.jpg", "caption": "x"}]))}
    with pytest.raises(DataError, match=r"none of the 1 pictures is in .*nowhere, a folder that"):
        build(SBUCaptionBuilder, annotations=annotations, images=str(tmp_path / "nowhere"))


# ---- packaged defaults


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("flickr30k", ["train", "val", "test"]),
        ("sbu_caption", ["train"]),
        ("conceptual_caption_3m", ["train"]),
        ("conceptual_caption_12m", ["train"]),
        ("laion2B_multi", ["train"]),
        ("vg_caption", ["train"]),
    ],
)
def test_packaged(name: str, splits: list[str]) -> None:
    assert packaged_defaults("datasets", name, "default")
    project = {"model": {"arch": "tiny_vit_attributes"}, "datasets": {name: {}}}
    cfg = resolve(project, origin="test").datasets[name]
    assert list(cfg.annotations) == splits
    assert cfg.vis_processor["train"] == {"name": "blip2_image_train"}
