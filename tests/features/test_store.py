"""Rows on disk: found again by name, true only once they are whole."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lavislite.features.layout import Layout
from lavislite.features.store import FeatureStore, Writer, header_of

LAYOUT = Layout(2, 16, "fp32")  # 128 bytes


def names(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Room for 200 pictures of two views, four to a file; five have a row."""
    store = FeatureStore(tmp_path, header_of(LAYOUT, 2, 200))
    store.note(kind="test")
    store.allot(names(50, 10, 40, 20, 30))
    return store


def put(store: FeatureStore, writer: Writer, row: int, stamp: int) -> torch.Tensor:
    features = torch.randn(2, 2, 16) + row
    for view, raw in enumerate(LAYOUT.encode(features).numpy()):
        writer.write(row, view, raw)
    writer.mark(row, stamp)
    return features


def test_rows_belong_to_names_for_good(store: FeatureStore) -> None:
    assert store.rows_of(names(10, 20, 30, 40, 50, 60)).tolist() == [1, 3, 4, 2, 0, -1]
    store.allot(names(70, 20, 60, 70))  # a new picture twice
    assert store.rows_of(names(50, 60, 70)).tolist() == [0, 6, 5]
    assert store.per_file == 4


def test_what_was_written_is_read_in_any_process(store: FeatureStore) -> None:
    writer = Writer(store)
    kept = {row: put(store, writer, row, 7 + row) for row in (0, 4)}
    writer.commit()
    assert store.stamps().tolist() == [7, 0, 0, 0, 11]
    again = FeatureStore.opened(store.folder, {})
    assert again.header["kind"] == "test"
    store.read(0, 0)
    for reader in (store, again, pickle.loads(pickle.dumps(store))):
        for row, features in kept.items():
            assert torch.equal(torch.stack([reader.read(row, v) for v in (0, 1)]), features)


def test_a_row_counts_once_its_bytes_are_on_the_disk(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        order.append("rows" if os.fstat(file).st_size > 64 else "stamps")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = Writer(store)
    put(store, writer, 1, 9)
    assert not store.stamps().any()
    writer.commit()
    assert store.stamps()[1] == 9
    assert order == ["rows", "stamps"]


def test_a_file_that_was_cut_short_holds_what_is_whole(store: FeatureStore) -> None:
    writer = Writer(store)
    for row in range(4):
        put(store, writer, row, 1 + row)
    writer.commit()
    os.truncate(store.folder / "000000.bin", 2 * store.row_bytes + 100)
    assert store.stamps().tolist() == [1, 2, 0, 0, 0]


def test_forgotten_rows_are_not_true(store: FeatureStore) -> None:
    writer = Writer(store)
    for row in range(5):
        put(store, writer, row, 1)
    writer.commit()
    store.forget(np.array([0, 4]))
    assert store.stamps().tolist() == [0, 1, 1, 1, 0]


def test_bounded_files() -> None:
    vit_g = Layout(257, 1408, "bf16")
    header = header_of(vit_g, 2, 10**6)
    store = FeatureStore(Path("nowhere"), header)
    assert store.per_file * store.row_bytes <= 256 << 20 < (store.per_file + 1) * store.row_bytes
    assert store.nbytes(1000) == 1000 * (2 * 257 * 1408 * 2 + 16)
