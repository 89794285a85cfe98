"""The playground's pictures with their objects' boxes and attributes, from the scene graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavislite.common.errors import DataError
from lavislite.common.io import read_json
from lavislite.datasets.base import Dataset, Processor, Sample
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.playground.scenes import VOCABULARY

MAX_OBJECTS = 4


class AttributesDataset(Dataset):
    """Samples hold ``image`` [3, S, S], ``index``, and the objects of the scene:

    ``object_boxes`` [4, 4], left, top, right and bottom as fractions of the side, and
    ``object_labels`` [4, 5], a number each for shape, colour, size, texture and position (the order
    of `VOCABULARY`). Rows beyond the scene's objects hold -1.
    """

    evaluation = "multilabel"

    def __init__(
        self,
        name: str,
        split: str,
        *,
        graphs: Sequence[Mapping[str, Any]],
        files: ImageFiles,
        vis_processor: Processor,
    ) -> None:
        super().__init__(name, split, files=files, vis_processor=vis_processor)
        self._boxes = np.full((len(graphs), MAX_OBJECTS, 4), -1.0, dtype=np.float32)
        self._labels = np.full((len(graphs), MAX_OBJECTS, len(VOCABULARY)), -1, dtype=np.int64)
        for k, graph in enumerate(graphs):
            for row, thing in enumerate(graph["objects"].values()):
                self._boxes[k, row] = box(thing, graph["width"], graph["height"])
                self._labels[k, row] = labels(thing)

    def __len__(self) -> int:
        return len(self._boxes)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        if image is None:
            return None
        return {
            "image": image,
            "object_boxes": torch.from_numpy(self._boxes[index]),
            "object_labels": torch.from_numpy(self._labels[index]),
            "index": int(index),
        }


def read_graphs(path: str | Path) -> list[dict[str, Any]]:
    """The scene graphs of a split, in the file's order.

    Raises:
        DataError: not a file of scene graphs.
    """
    content = read_json(path)
    graphs = list(content.values()) if isinstance(content, dict) else []
    if not graphs or not all({"objects", "file_name"} <= graph.keys() for graph in graphs):
        raise DataError(
            f"{path}: expected scene graphs of the playground: id -> objects, file_name."
        )
    return graphs


def box(thing: Mapping[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    """An object's left, top, right and bottom as fractions of the picture."""
    x, y = thing["x"] / width, thing["y"] / height
    return x, y, x + thing["w"] / width, y + thing["h"] / height


def labels(thing: Mapping[str, Any]) -> list[int]:
    """An object's place in each list of `VOCABULARY`."""
    words = (thing["name"], *thing["attributes"], thing["position"])
    return [values.index(word) for values, word in zip(VOCABULARY.values(), words, strict=True)]
