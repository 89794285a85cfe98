"""Annotations in arrays: made once per machine, mapped, and not copied into spawned workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_parts import build, draw, write

from lavislite.datasets import packed
from lavislite.datasets.annotations import Record
from lavislite.datasets.caption import ImageCaptionBuilder
from lavislite.datasets.packed import PackedStrings, file_stamp, stored
from lavislite.datasets.tables import ImageTable


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALL", 0)


def folders(tmp_path: Path) -> list[Path]:
    root = tmp_path / "cache/annotations"
    return sorted(root.iterdir()) if root.exists() else []


class Making:
    """Counts how often it is asked."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(self.n), "none": np.empty(0, np.int64)}


def test_large_arrays_are_made_once_and_are_read_only(tmp_path: Path) -> None:
    make = Making(packed.SMALL // 8)
    first, second = stored(["x"], make), stored(["x"], make)
    assert make.calls == 1
    for arrays in (first, second):
        assert arrays["a"].tolist() == list(range(make.n))
        assert arrays["none"].tolist() == []
        with pytest.raises(ValueError, match="read-only"):
            arrays["a"][0] = 1
    assert [f.suffix for f in folders(tmp_path)] == [""]  # no lock is left behind
    stored(["y"], make)
    assert make.calls == 2


def test_small_arrays_leave_no_files(tmp_path: Path) -> None:
    make = Making(3)
    assert stored(["x"], make)["a"].tolist() == stored(["x"], make)["a"].tolist() == [0, 1, 2]
    assert folders(tmp_path) == []


def test_a_mapped_array_is_pickled_by_name_and_what_is_cut_out_of_it_by_value() -> None:
    array = stored(["x"], Making(packed.SMALL // 8))["a"]
    sent = pickle.dumps(array)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert np.array_equal(again, array)
    assert len(pickle.dumps(again)) < 1000
    cut = pickle.loads(pickle.dumps(array[5:8]))
    assert (type(cut), cut.tolist()) == (np.ndarray, [5, 6, 7])
    assert pickle.loads(pickle.dumps(array + 1))[:2].tolist() == [1, 2]


@pytest.mark.usefixtures("everything_is_large")
def test_a_spawned_worker_receives_no_annotations(tmp_path: Path) -> None:
    names = draw(tmp_path / "images", 4)
    texts = [f"{name[0]} " + "word " * 2000 for name in names]
    rows = [{"image": n, "caption": [t, "b"]} for n, t in zip(names, texts, strict=True)]
    options = {
        "annotations": {"train": str(write(tmp_path / "a.json", rows))},
        "images": str(tmp_path / "images"),
        "text_processor": {"train": {"name": "blip_caption", "max_words": 3}},
    }
    dataset = build(ImageCaptionBuilder, **options)
    sent = pickle.dumps(dataset)  # what spawning does, for the dataset of every loader
    assert len(sent) < 5000 < len(texts[0])
    received = pickle.loads(sent)
    seen = [received[i]["text_input"] for i in range(8)]
    assert seen == [dataset[i]["text_input"] for i in range(8)]
    assert seen[:2] == ["0 word word", "b"]


@pytest.mark.usefixtures("everything_is_large")
def test_a_table_is_read_once_until_a_file_an_option_or_a_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lavislite.datasets.base as base

    reads: list[Path] = []
    real = base.read_records
    monkeypatch.setattr(base, "read_records", lambda f, **o: reads.append(f) or real(f, **o))
    names = draw(tmp_path / "images", 2)
    rows = [{"image": name, "caption": "x", "note": "y"} for name in names]
    file = write(tmp_path / "a.json", rows)
    options = {"annotations": {"train": str(file)}, "images": str(tmp_path / "images")}

    def text(**more: object) -> str:
        return build(ImageCaptionBuilder, **{**options, **more})[1]["text_input"]

    assert [text(), text(), text(captions_per_image="random"), len(reads)] == ["x", "x", "x", 1]
    assert [text(columns={"caption": "note"}), len(reads)] == ["y", 2]
    before = file.stat()
    write(file, [{**row, "caption": "z"} for row in rows])  # as long as it was
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert [text(), len(reads)] == ["z", 3]
    monkeypatch.setattr(packed, "code_version", lambda: "another")
    assert [text(), len(reads)] == ["z", 4]


@pytest.mark.usefixtures("everything_is_large")
def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    make = Making(5)
    stored(["x"], make)
    (folder,) = folders(tmp_path)
    (folder / "a.npy").write_bytes(b"")
    assert stored(["x"], make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert make.calls == 2
    assert stored(["x"], make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert make.calls == 2


@pytest.mark.usefixtures("everything_is_large")
def test_a_cache_that_cannot_be_written_to_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path / "file"))
    assert stored(["x"], Making(3))["a"].tolist() == [0, 1, 2]
    assert "reads the annotations for itself" in caplog.text


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_make_slowly, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1


def _make_slowly(tmp_path: Path) -> None:
    import time

    def make() -> dict[str, np.ndarray]:
        (tmp_path / f"made-{os.getpid()}").write_text("")
        time.sleep(0.3)
        return {"a": np.zeros(packed.SMALL // 8)}

    assert stored(["x"], make)["a"].sum() == 0


def test_packed_strings_are_the_strings() -> None:
    strings = [
        "",
        "a",
        "日本",
        "",
        "b\n",
        "\ud800",
        "a\u2028b\x85c",
        "👩‍👩‍👧",
        "שלום عالم",
        "x" * 10_000,
    ]
    strings_packed = PackedStrings(iter(strings))
    again = PackedStrings.from_arrays(strings_packed.arrays("n"), "n")
    assert list(strings_packed) == list(again) == strings
    assert (strings_packed[-1], strings_packed[2], len(strings_packed)) == (
        "x" * 10_000,
        "日本",
        10,
    )
    with pytest.raises(IndexError):
        strings_packed[10]
    assert list(PackedStrings([])) == []


def test_a_table_knows_the_picture_of_a_text() -> None:
    table = ImageTable(
        [Record("a", []), Record("b", ["1", "2"]), Record("c", []), Record("d", ["3"])]
    )
    assert [table.picture_of_text(t) for t in range(3)] == [1, 1, 3]


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    seen = [file_stamp(file)]
    for text in ("a", "ab"):
        file.write_text(text)
        seen.append(file_stamp(file))
    os.utime(file, ns=(1, 1))
    assert len({*seen, file_stamp(file)}) == 4
