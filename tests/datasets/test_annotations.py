"""Annotation files of every supported shape give the same records; wrong ones say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.annotations import Record, read_records

CAT = Record("a/cat.jpg", ["a cat", 'it says "meow", loudly'], "7")
DOG = Record("dog.png", ["a dog"], "8")


def one_caption_rows() -> list[dict]:
    return [
        {"image": "a/cat.jpg", "caption": "a cat", "image_id": 7},
        {"image": "a/cat.jpg", "caption": 'it says "meow", loudly', "image_id": 7},
        {"image": "dog.png", "caption": "a dog", "image_id": 8},
    ]


def list_rows() -> list[dict]:
    return [{"image": r.image, "caption": r.captions, "image_id": r.image_id} for r in (CAT, DOG)]


def coco() -> dict:
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a/cat.jpg"},
            {"id": 9, "file_name": "without_caption.jpg"},
            {"id": 8, "file_name": "dog.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 8, "caption": "a dog"},
            {"id": 2, "image_id": 7, "caption": CAT.captions[0]},
            {"id": 3, "image_id": 7, "caption": CAT.captions[1]},
        ],
    }


def karpathy() -> dict:
    def image(name: str, split: str, number: int, captions: list[str], **more: object) -> dict:
        sentences = [{"raw": text, "tokens": text.split()} for text in captions]
        return {"filename": name, "split": split, "cocoid": number, "sentences": sentences, **more}

    return {
        "dataset": "coco",
        "images": [
            image("cat.jpg", "train", 7, CAT.captions, filepath="a"),
            image("other.jpg", "val", 5, ["another"]),
            image("dog.png", "restval", 8, DOG.captions),
        ],
    }


def table(delimiter: str, quote: Callable[[str], str]) -> str:
    rows = [["image", "caption", "image_id"]]
    rows += [[r["image"], quote(r["caption"]), str(r["image_id"])] for r in one_caption_rows()]
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


def merged(records: list[Record]) -> dict[str, tuple[str | None, list[str]]]:
    found: dict[str, tuple[str | None, list[str]]] = {}
    for record in records:
        found.setdefault(record.image, (record.image_id, []))[1].extend(record.captions)
    return found


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


FILES = {
    "rows.json": json.dumps(one_caption_rows()),
    "lists.json": json.dumps(list_rows(), indent=1),
    "by_id.json": json.dumps({"x": list_rows()[0], "y": list_rows()[1]}),
    "coco.json": json.dumps(coco()),
    "karpathy.json": json.dumps(karpathy()),
    "lines.jsonl": "\n".join(map(json.dumps, one_caption_rows())),
    "lines.json": "\n".join(map(json.dumps, list_rows())) + "\n\n",
    "quoted.csv": table(",", quoted),
    "with_bom.csv": "\ufeff" + table(",", quoted),
    "plain.tsv": table("\t", str),
    "quoted.tsv": table("\t", quoted),
    "csv_dump/rows.json": json.dumps(one_caption_rows()),  # a folder's name says nothing
}


@pytest.mark.parametrize("name", FILES)
def test_all_shapes_say_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILES[name], encoding="utf-8")
    expected = {r.image: (r.image_id, r.captions) for r in (CAT, DOG)}
    assert merged(list(read_records(path))) == expected


def test_a_lonely_quotation_mark_in_a_tsv_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "web.tsv"
    path.write_text('image\tcaption\na.jpg\t"big" dog\nb.jpg\t"open\nc.jpg\t5" nail\n')
    assert [r.captions[0] for r in read_records(path)] == ['"big" dog', '"open', '5" nail']


def test_karpathy_split_by_name(tmp_path: Path) -> None:
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(karpathy()))
    assert [r.image for r in read_records(path, split="val")] == ["other.jpg"]
    with pytest.raises(DataError, match=r"no split 'vla'. Did you mean 'val'") as error:
        list(read_records(path, split="vla"))
    assert "restval, train, val" in str(error.value)


def test_columns_rename(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("file_name,text,key\na.jpg,hello,k1\n")
    columns = {"image": "file_name", "caption": "text", "image_id": "key"}
    assert list(read_records(path, columns=columns)) == [Record("a.jpg", ["hello"], "k1")]


def test_ids_are_optional_strings(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(
            [{"image": "a", "caption": "x"}, {"image": "b", "caption": "y", "image_id": "coco_1"}]
        )
    )
    assert [r.image_id for r in read_records(path)] == [None, "coco_1"]


GOOD = {"image": "a.jpg", "caption": "x"}
BROKEN = {
    "no caption": (json.dumps([GOOD, {"image": "b"}]), ["record 2", "no `caption`", "keys image"]),
    "synonym": (json.dumps([{"file_name": "a", "caption": "x"}]), ["columns: {image: file_name}"]),
    "null": (json.dumps([{"image": "a", "caption": None}]), ["record 1", "`caption` is empty"]),
    "empty text": (json.dumps([{"image": "a", "caption": " "}]), ["record 1", "caption", "' '"]),
    "no texts": (json.dumps([{"image": "a", "caption": []}]), ["record 1", "saw []"]),
    "number": (json.dumps([{"image": 3, "caption": "x"}]), ["record 1", "file name", "saw 3"]),
    "not records": (json.dumps(["a", "b"]), ["record 1", "saw 'a'"]),
    "other object": (json.dumps({"data": [1]}), ["saw an object with the keys data"]),
    "empty list": ("[]", ["holds no records", "2 bytes"]),
    "empty file": ("", ["is empty"]),
    "empty object": ("{}", ["expected a list of records", "(none)"]),
    "a number": ("3", ["expected a list of records", "saw a int"]),
    "cut short": ('[{"image": "a"', ["not valid JSON", "line 1, column 15"]),
    "bad line": ('{"image": "a", "caption": "x"}\n{"image": \n', ["line 2", "not valid JSON"]),
    "coco id": (
        json.dumps({"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}),
        ["annotation 1", "image_id 3"],
    ),
    "coco key": (
        json.dumps({"images": [{"id": 3}], "annotations": []}),
        ["`id` and `file_name`"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_explained(case: str, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        list(read_records(path))
    for word in [str(path), *words]:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "image,caption\na.jpg,one, two\n", ["line 2", "expected 2 fields", "saw 3"]),
        ("x.csv", "image,caption\na.jpg\n", ["line 2", "saw 1"]),
        ("x.csv", "image\tcaption\na\tb\n", ["Is it a .tsv file?"]),
        ("x.tsv", "image,caption\na,b\n", ["Is it a .csv file?"]),
        ("x.csv", "image;caption\na;b\n", ["'image;caption'", "Save the file with ','"]),
        ("x.csv", "image,captoin\na,b\n", ["line 2", "no `caption`", "Did you mean 'captoin'?"]),
        ("x.csv", "image,caption\na,\n", ["line 2", "expected some text"]),
        ("x.csv", 'image,caption\na,"b\n', ["not valid CSV"]),
        ("x.csv", "image,caption\n", ["holds no records"]),
        ("x.csv", "", ["holds no records (0 bytes)"]),
    ],
)
def test_broken_tables_are_explained(
    name: str, content: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        list(read_records(tmp_path / name))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_files_offer_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "captions_train.json").write_text("[]")
    with pytest.raises(DataError, match=r"Did you mean 'captions_train.json'"):
        list(read_records(tmp_path / "caption_train.json"))
    with pytest.raises(DataError, match=r"is a folder"):
        list(read_records(tmp_path))
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist"):
        list(read_records(tmp_path / "nowhere" / "x.json"))


def test_unknown_column_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"columns.captions.*Did you mean 'caption'"):
        list(read_records(tmp_path / "x.json", columns={"captions": "text"}))
