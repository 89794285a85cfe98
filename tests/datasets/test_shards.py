"""Shards in tar archives: any sample by itself, in any order, with any of its captions."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_parts import build, draw, write
from PIL import Image

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.caption import ImageCaptionBuilder
from lavislite.datasets.images import TooManyBadImages
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.shard_names import expand_braces
from lavislite.datasets.shards import OwnShardsBuilder
from lavislite.datasets.tar import members


def picture(shade: int, format_: str = "jpeg") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (shade, 100, 200)).save(stream, format_)
    return stream.getvalue()


def pack(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, first: int, n: int) -> Path:
    """As img2dataset makes it."""
    files: dict[str, bytes] = {}
    for k in range(first, first + n):
        caption = f"caption {k}"
        about = {"url": "http://x", "caption": caption, "status": "success", "width": 12}
        files[f"{k:09d}.jpg"] = picture(k)
        files[f"{k:09d}.txt"] = caption.encode()
        files[f"{k:09d}.json"] = json.dumps(about).encode()
    return pack(path, files)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for k in range(3):
        shard(tmp_path / f"shards/{k:05d}.tar", 10 * k, 5)
        (tmp_path / f"shards/{k:05d}_stats.json").write_text("{}")
    return str(tmp_path / "shards/{00000..00002}.tar")


def dataset(annotations: Any, train: bool = True, **options: Any):
    return build(OwnShardsBuilder, annotations={"train": annotations}, train=train, **options)


def texts(data) -> list[str]:
    return [data[i]["text_input"] for i in range(len(data))]


ALL = [f"caption {k}" for k in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24)]


def test_any_sample_by_itself(shards: str, tmp_path: Path) -> None:
    data = dataset(shards)
    assert texts(data) == ALL
    for i, k in ((12, 22), (3, 3)):
        expected = data.vis_processor(Image.open(io.BytesIO(picture(k))))
        assert torch.equal(data[i]["image"], expected)
    assert len({data[i]["image_id"] for i in range(15)}) == 15
    assert f"{tmp_path}/shards/00001.tar/000000010.jpg" in data.record_id(5)
    assert list(data.captions()) == ALL


@pytest.mark.parametrize("how", ["glob", "deep glob", "list", "one", "relative", "in the cache"])
def test_naming_them(
    how: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    monkeypatch.chdir(tmp_path)
    if how == "in the cache":
        (tmp_path / "cache").mkdir()
        folder.rename(tmp_path / "cache/laion")
    names = {
        "glob": f"{folder}/*.tar",
        "deep glob": f"{tmp_path}/**/*.tar",
        "list": [f"{folder}/00000.tar", f"{folder}/0000[12].tar"],
        "one": f"{folder}/00001.tar",
        "relative": "shards/{00000,00001,00002}.tar",
        "in the cache": "laion/*.tar",
    }
    assert texts(dataset(names[how])) == (ALL[5:10] if how == "one" else ALL)


def test_braces() -> None:
    assert list(expand_braces("a{08..10}/{x,y}.tar")) == [
        f"a{n}/{c}.tar" for n in ("08", "09", "10") for c in "xy"
    ]
    assert list(expand_braces("plain")) == ["plain"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{tmp}/shards/{{00001..00004}}.tar", "2 of 4 archives.*the first is .*00003.tar"),
        ("{tmp}/nothing/*.tar", "1 of 1 archives .* do not exist"),
        ("{tmp}/shards", r"is a folder; .*shards/\*.tar"),
        ("pipe:aws s3 cp x -", "is a command. .* paths or URLs"),
        ({"path": "a.tar"}, "expected tar archives or a pattern"),
    ],
)
@pytest.mark.usefixtures("shards")
def test_shards_that_are_not_there(pattern: Any, words: str, tmp_path: Path) -> None:
    name = pattern.format(tmp=tmp_path) if isinstance(pattern, str) else pattern
    with pytest.raises((DataError, ConfigError), match=words):
        dataset(name)


def test_options_that_make_no_sense(shards: str) -> None:
    for options, words in (
        ({"images": "x"}, "images: leave it out"),
        ({"max_captions": 0}, "max_captions: expected 1 or more"),
        ({"shard_window": 0}, "shard_window: expected 1 or more"),
        ({"shard_cache_gb": -1}, "shard_cache_gb: expected 0 or more"),
        ({"columns": {"image": "x"}}, "columns.image: only `caption`"),
        ({"captions_per_image": "some"}, "captions_per_image"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataset(shards, **options)
    with pytest.raises(ConfigError, match=r"no split 'val'.* Known: train"):
        build(OwnShardsBuilder, "val", annotations={"train": shards})


CAPFILT = ["first", "second", "third"]


def test_one_of_capfilts_first_two_captions_is_drawn(tmp_path: Path) -> None:
    files = {"a.jpg": picture(1), "a.json": json.dumps(CAPFILT).encode(), "a.txt": b"alt text"}
    path = str(pack(tmp_path / "a.tar", files))
    torch.manual_seed(0)
    data = dataset(path)
    assert len(data) == 1
    drawn = Counter(data[0]["text_input"] for _ in range(60))
    assert set(drawn) == {"first", "second"}
    assert min(drawn.values()) > 15
    assert texts(dataset(path, captions_per_image="all", max_captions=9)) == CAPFILT
    assert dataset(path, train=False).pictures().references(0) == ["first", "second"]


def test_where_captions_come_from(tmp_path: Path) -> None:
    files = {
        "only_txt.png": picture(0, "png"),
        "only_txt.txt": " a\u2028b 👩‍👩‍👧 שלום ".encode(),
        "only_json.webp": picture(1, "webp"),
        "only_json.json": json.dumps({"caption": ["x", "y"], "TEXT": "own"}).encode(),
        "sub.folder/both.JPG": picture(2),
        "sub.folder/both.json": json.dumps({"caption": None}).encode(),
        "sub.folder/both.txt": b"from txt",
        "broken.jpg": picture(3),
        "broken.json": b"{",
        "no_picture.txt": b"lost",
        "blank.jpg": picture(4),
        "blank.txt": b" \n",
        ".hidden": b"",
        "both.mask.png": b"",
        "both.txt": b"",
    }
    data = dataset(str(pack(tmp_path / "a.tar", files)))
    seen = [data.table.texts[t] for k in range(len(data)) for t in data.table.text_numbers(k)]
    assert seen == ["a\u2028b 👩‍👩‍👧 שלום", "x", "y", "from txt"]
    assert [Path(name).name for name in data.table.paths] == [
        *("only_txt.png", "only_json.webp", "both.JPG")
    ]
    own = dataset(str(tmp_path / "a.tar"), columns={"caption": "TEXT"})
    assert "own" in list(own.captions())


def test_damaged_pictures_are_counted_like_others(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for k in range(20):
        content = b"<html>" if k == 4 else picture(k)
        files |= {f"{k}.jpg": content[:100] if k == 7 else content, f"{k}.txt": b"x"}
    path = str(pack(tmp_path / "a.tar", files))
    data = dataset(path, max_bad_fraction=0.1)
    assert [i for i in range(20) if data[i] is None] == [4, 7]
    assert data.bad_records == 2
    assert len(dataset(path, train=False, max_bad_fraction=0.1).pictures()) == 18
    data = dataset(path, max_bad_fraction=0.05)
    with pytest.raises(TooManyBadImages, match=r"2 of 20 images .*a.tar/7.jpg"):
        [data[i] for i in range(20)]


def test_a_shard_cut_short_gives_what_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(tmp_path / "a.tar", 0, 4)
    path.write_bytes(path.read_bytes()[:7000])
    data = dataset(str(path))
    assert 1 <= len(data) < 4
    assert texts(data) == ALL[: len(data)]
    assert f"{path}: only its first" in caplog.text


@pytest.mark.parametrize("kind", ["text", "gzip", "empty", "no captions"])
def test_files_that_are_no_shards(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    if kind == "gzip":
        pack(path, {"a.jpg": picture(0)}, mode="w:gz")
    elif kind == "no captions":
        pack(path, {"a.jpg": picture(0)})
    else:
        path.write_text("x" * 2000 if kind == "text" else "")
    words = {"gzip": "compressed", "empty": "is empty", "no captions": "no picture with a caption"}
    with pytest.raises(DataError, match=words.get(kind, "not a tar archive")) as error:
        dataset(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(format_: int, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "f" * 95 + ".jpg"  # does not fit into one field
    longer = [] if format_ == tarfile.USTAR_FORMAT else ["ü" * 200 + "\n.txt"]
    names = ["a.jpg", long, *longer, "empty.txt", "z.json"]
    contents = {name: bytes([i]) * (i * 700) for i, name in enumerate(names)}
    path = pack(tmp_path / "a.tar", contents, format=format_)
    with tarfile.open(path, "a", format=format_) as archive:
        archive.add(tmp_path, "folder", recursive=False)
        archive.addfile(tarfile.TarInfo("last.jpg"))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    found = [(tuple(member), bytes(content)) for member, content in members(path)]
    assert [member for member, _ in found] == expected
    assert {name: content for (name, _, _), content in found} == {**contents, "last.jpg": b""}


def test_the_index_is_made_once_and_again_when_a_shard_changes(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lavislite.datasets import shard_index as module

    read: list[Any] = []
    real = module.members
    monkeypatch.setattr(module, "members", lambda *path: read.append(path) or real(*path))
    dataset(shards)
    dataset(shards, captions_per_image="all")
    assert len(read) == 3
    shard(tmp_path / "shards/00001.tar", 50, 1)
    assert "caption 50" in texts(dataset(shards))
    assert len(read) == 6


def test_workers_get_the_index_by_name(shards: str) -> None:
    data = dataset(shards)
    again = pickle.loads(pickle.dumps(data.table))
    assert len(pickle.dumps(data.table)) < 3000
    assert list(again.texts) == ALL
    assert np.array_equal(again.offset, data.table.offset)


def mixed(shards: str, tmp_path: Path) -> TrainLoader:
    names = draw(tmp_path / "images", 8)
    rows = [{"image": name, "caption": f"own {name[0]}"} for name in names]
    half = [str(write(tmp_path / f"{k}.json", rows[4 * k : 4 * k + 4])) for k in range(2)]
    own = build(ImageCaptionBuilder, annotations={"train": half}, images=str(tmp_path / "images"))
    return TrainLoader([own, dataset(shards)], [3.0, 1.0], batch_size=2, seed=5, num_workers=0)


def test_shards_mix_with_other_data_by_ratio_and_resume_to_the_sample(
    shards: str, tmp_path: Path
) -> None:
    loader = mixed(shards, tmp_path)
    n = loader.batches_per_epoch
    assert n == 11
    whole = list(loader.batches(0, 2 * n))
    owns = [batch["text_input"][0].startswith("own") for batch in whole]
    assert [sum(owns[:n]), sum(owns[n:])] == [8, 8]  # 3 of 4, rounded
    drawn = Counter(t for b in whole for t in b["text_input"] if t.startswith("cap"))
    assert max(drawn.values()) <= 2  # shuffled as a whole, an epoch shows none of them twice
    assert len({text.split()[1][:-1] for text in drawn}) == 3  # from all shards
    resumed = mixed(shards, tmp_path)
    resumed._num_workers = 2
    for one, other in zip(whole[7:], resumed.batches(7, 2 * n), strict=True):
        assert one["text_input"] == other["text_input"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["image_id"], other["image_id"])
