"""Texts that are matched with many images: tokenized once, chosen from many times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lavislite.models.blip2.qformer import ImageMemory
from lavislite.models.blip2.text import TextBatch

# With so many pairs per image its keys and values are read where they are; else copied per pair.
PAIRS_PER_IMAGE = 8


@dataclass
class TextGallery:
    """Token ids [N, L], right padded, on the device; and how long each text is [N], on the CPU."""

    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, text: TextBatch, device: torch.device) -> TextGallery:
        return cls(text.ids.to(device), text.mask.sum(1))

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask [n, longest] of the texts `index` [n], which is on the CPU."""
        lengths, device = self.lengths[index], self.ids.device
        width = int(lengths.max())
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids = self.ids[:, :width].index_select(0, index.to(device, non_blocking=True))
        return ids, mask.to(device, non_blocking=True)


def memories_of(
    memory: ImageMemory, image_index: Tensor, device: torch.device
) -> ImageMemory | list[ImageMemory]:
    """What pairs [P] look at, pair p at image ``image_index[p]`` (on the CPU).

    Images that many pairs in a row look at are not copied for them.
    """
    images, counts = image_index.unique_consecutive(return_counts=True)
    if len(images) * PAIRS_PER_IMAGE > len(image_index):
        return memory.select(image_index.to(device, non_blocking=True))
    return [
        ImageMemory([k[i : i + 1] for k in memory.keys], [v[i : i + 1] for v in memory.values], n)
        for i, n in zip(images.tolist(), counts.tolist(), strict=True)
    ]
