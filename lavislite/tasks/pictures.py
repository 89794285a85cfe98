"""Several questions about one picture: it is decoded, and looked at, once for all of them.

A data set takes part that offers, as `VQADataset` does, ``question(index)``, a sample without its
picture, ``file_number(index)``, the number of the picture, ``load_image(index)``, and
``by_picture()``, the questions of each picture. Others are read sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lavislite.common.loading import batch_indices
from lavislite.tasks.baselines import OtherImages

OTHER = "other_image"
PICTURES = ("image", "image_features", "image_index")  # keys under which a model finds pictures


def question_batches(dataset: Any, batch_size: int, limit: int | None = None) -> list[list[int]]:
    """Batches of question numbers, on every process alike, each at most `batch_size` long.

    All questions about a picture are in one batch, as far as they fit, in the order that the data
    set gives its pictures.

    Args:
        limit: keep only the questions of so many batches of `batch_size`, from the first on.
    """
    plain = batch_indices(len(dataset), batch_size, limit)
    if not _shares(dataset):
        return plain
    kept, batches = sum(map(len, plain)), list[list[int]]()
    for group in dataset.by_picture():
        asked = [i for i in group if i < kept]
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            if batches and len(batches[-1]) + len(part) <= batch_size:
                batches[-1] += part
            else:
                batches.append(part)
    return batches


def with_pictures(dataset: Any, *, others: bool = False) -> Any:
    """`dataset` for loading: in batches that hold each picture once, where it can tell them apart.

    Args:
        others: samples get ``other_image`` too; see `OtherImages`.

    Raises:
        ConfigError: `others`, and all records show the same picture.
    """
    shifted = OtherImages(dataset) if others else None
    return PicturesOnce(dataset, shifted) if _shares(dataset) else shifted or dataset


class PicturesOnce:
    """Samples that share their pictures within a batch.

    A batch holds the different pictures, ``image`` [U, 3, H, W], and the number of each sample's
    among them, ``image_index`` [B]; with `others` ``other_image`` [V, 3, H, W] and
    ``other_image_index`` [B] as well.
    """

    def __init__(self, dataset: Any, others: OtherImages | None = None) -> None:
        self.dataset, self.others = dataset, others

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any] | None]:
        """The samples of a batch; None for those whose picture, or other one, cannot be read."""
        loaded: dict[int, Tensor | None] = {}

        def picture(index: int) -> Tensor | None:
            number = self.dataset.file_number(index)
            if number not in loaded:
                loaded[number] = self.dataset.load_image(index)
            return loaded[number]

        samples: list[dict[str, Any] | None] = []
        for index in indices:
            seen = {"image": picture(index)}
            if self.others is not None:
                seen[OTHER] = picture(self.others.other(index))
            lost = any(image is None for image in seen.values())
            samples.append(None if lost else {**self.dataset.question(index), **seen})
        return samples

    def collate(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        good = [dict(sample) for sample in samples if sample is not None]
        if not good:
            return {}
        keys = ("image",) if self.others is None else ("image", OTHER)
        shown = {key: [sample.pop(key) for sample in good] for key in keys}
        batch = self.dataset.collate(good)
        for key, images in shown.items():
            places: dict[int, int] = {}  # within a batch, one picture is one object
            index = [places.setdefault(id(image), len(places)) for image in images]
            different = {id(image): image for image in images}
            stacked = self.dataset.collate([{"image": image} for image in different.values()])
            batch |= {key: stacked["image"], f"{key}_index": torch.tensor(index)}
        return batch


def seen(model: Any, samples: Mapping[str, Any], key: str = "image") -> dict[str, Any]:
    """What of the pictures under `key` goes to `model`, however often it is asked about them.

    The vision tower's output where the model has ``with_features(samples)``, which then understands
    ``image_features`` and ``image_index``; else one picture for each sample.
    """
    index = samples.get(f"{key}_index")
    if index is None:
        return {"image": samples[key]}
    if hasattr(model, "with_features"):
        return model.with_features({"image": samples[key], "image_index": index})
    return {"image": samples[key][index]}


def without_pictures(samples: Mapping[str, Any]) -> dict[str, Any]:
    """`samples` without what `seen` makes something of."""
    pictures = {f"{key}{suffix}" for key in ("image", OTHER) for suffix in ("", "_index")}
    return {key: value for key, value in samples.items() if key not in pictures}


def part_of(samples: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Some samples of a batch of tensors and lists; pictures that are shared stay all there."""
    if len(kept) == len(samples["text_input"]):
        return dict(samples)
    pooled = ("image", "image_features") if "image_index" in samples else ()
    return {
        key: value if key in pooled else _cut(value, kept)
        for key, value in samples.items()
        if key in (*PICTURES, "text_input", "caption", "index")
    }


def _cut(value: Any, kept: Sequence[int]) -> Any:
    return value[list(kept)] if hasattr(value, "shape") else [value[b] for b in kept]


def _shares(dataset: Any) -> bool:
    needed = ("question", "file_number", "load_image", "by_picture")
    return all(hasattr(dataset, name) for name in needed)
