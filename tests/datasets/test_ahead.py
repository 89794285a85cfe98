"""The next item is on its way while the one before is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lavislite.datasets.ahead import one_ahead


def test_all_items_come_in_order() -> None:
    assert list(one_ahead(range(50))) == list(range(50))
    assert list(one_ahead([])) == []


def test_the_next_item_is_taken_while_one_is_in_use() -> None:
    taken = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        taken.set()
        yield 1

    items = one_ahead(source())
    assert next(items) == 0
    assert taken.wait(10)
    assert list(items) == [1]


def test_an_error_comes_in_its_turn() -> None:
    def source() -> Iterator[int]:
        yield 0
        raise ValueError("record 7")

    items = one_ahead(source())
    assert next(items) == 0
    with pytest.raises(ValueError, match="record 7"):
        next(items)


def test_closing_early_ends_the_thread() -> None:
    before = threading.active_count()
    items = one_ahead(range(10**9))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before
