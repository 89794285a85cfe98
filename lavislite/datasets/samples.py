"""Samples, and how they become batches."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch

from lavislite.common.errors import DataError

Sample = dict[str, Any]


def id_number(dataset: str, image_id: str) -> int:
    """A 62-bit number for an id, the same in every run and process, other in every dataset."""
    digest = blake2b(f"{dataset}\0{image_id}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 2


def collate(samples: Sequence[Sample | None], owner: str = "") -> Sample:
    """Samples to a batch: tensors stacked, numbers to a tensor, anything else in a list.

    None is left out; a batch of nothing else is empty.

    Raises:
        DataError: the samples have different keys, or tensors of different shapes.
    """
    good = [sample for sample in samples if sample is not None]
    if not good:
        return {}
    for sample in good:
        if sample.keys() != good[0].keys():
            raise DataError(
                f"{owner}: the samples of a batch need the same keys, saw {sorted(good[0])} and "
                f"{sorted(sample)}."
            )
    return {key: _stacked([sample[key] for sample in good], key, owner) for key in good[0]}


def _stacked(values: list[Any], key: str, owner: str) -> Any:
    if isinstance(values[0], torch.Tensor):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(
                f"{owner}: `{key}` has different shapes in one batch: {sorted(shapes)}. Does the "
                "processor make them equal?"
            )
        return torch.utils.data.default_collate(values)  # a worker stacks in shared memory
    if isinstance(values[0], (bool, int, float)):
        return torch.tensor(values)
    return values
