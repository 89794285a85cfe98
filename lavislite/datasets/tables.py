"""All captions of a split in a few arrays."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lavislite.datasets.packed import PackedStrings, StringPacker, stored
from lavislite.datasets.records import Record


class ImageTable:
    """Pictures with their captions and ids, packed so that processes share the memory.

    A picture is what has the same file and the same id; its captions are gathered from all records.

    Attributes:
        paths, ids: one string per picture (the id is the path where there is none).
        texts: all captions, picture by picture.
        first_text: [n_pictures + 1] where each picture's captions begin in `texts`.
        clash: two pictures with the same id but other files, or None.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._use(_packed(records))

    @classmethod
    def stored(cls, key: Sequence[str], records: Callable[[], Iterable[Record]]) -> ImageTable:
        """The table of `records`, which are read only if it was not made on this machine before.

        Args:
            key: all that the records depend on; see `packed.stored`.
        """
        table = cls.__new__(cls)
        table._use(stored(("ImageTable", *key), lambda: _packed(records())))
        return table

    def _use(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.paths = PackedStrings.from_arrays(arrays, "paths")
        own = "ids.utf8" in arrays
        self.ids = PackedStrings.from_arrays(arrays, "ids") if own else self.paths
        self.texts = PackedStrings.from_arrays(arrays, "texts")
        self.first_text = arrays["first_text"]
        clash = arrays["clash"].tolist() if own else []
        self.clash: tuple[int, int] | None = (clash[0], clash[1]) if clash else None

    def __len__(self) -> int:
        return len(self.paths)

    def text_numbers(self, k: int) -> range:
        """The captions of picture `k`, as positions in `texts`."""
        return range(int(self.first_text[k]), int(self.first_text[k + 1]))

    def picture_of_text(self, t: int) -> int:
        """The picture that caption `t` belongs to."""
        return int(np.searchsorted(self.first_text, t, side="right")) - 1


def _packed(records: Iterable[Record]) -> dict[str, np.ndarray]:
    number: dict[tuple[str, str], int] = {}  # of the pictures, first come first
    texts, picture = StringPacker(), array("q")
    for record in records:
        key = record.image, record.image if record.image_id is None else record.image_id
        k = number.setdefault(key, len(number))
        for caption in record.captions:
            texts.add(caption)
            picture.append(k)
    of_text = np.asarray(picture, np.int64)
    return {
        **PackedStrings(path for path, _ in number).arrays("paths"),
        **PackedStrings(image_id for _, image_id in number).arrays("ids"),
        **_by_picture(texts.arrays("texts"), of_text),
        "first_text": np.cumsum(np.append(0, np.bincount(of_text, minlength=len(number)))),
        "clash": np.asarray(_clash(number), np.int64),
    }


def _by_picture(texts: dict[str, np.ndarray], of_text: np.ndarray) -> dict[str, np.ndarray]:
    """The captions picture by picture; those of each in their order."""
    if (np.diff(of_text) >= 0).all():
        return texts
    packed = PackedStrings.from_arrays(texts, "texts")
    order = np.argsort(of_text, kind="stable")
    return PackedStrings(packed[i] for i in order.tolist()).arrays("texts")


def _clash(pictures: Iterable[tuple[str, str]]) -> tuple[int, ...]:
    """The first two of (path, id) that have the same id; empty if there are none."""
    first: dict[str, int] = {}
    for number, (_, image_id) in enumerate(pictures):
        other = first.setdefault(image_id, number)
        if other != number:
            return other, number
    return ()
