"""GQA's grounding: how much attention lies on the things that question and answer speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Question = Mapping[str, Any]
_KINDS = {str: "a string", list: "a list", bool: "true or false", dict: "an object"}
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height


def value_at(key: str, record: Any, *path: str, kind: type = object) -> Any:
    """What the record of question `key` has at `path`.

    Raises:
        ValueError: it has nothing there, or something that is not of this kind.
    """
    for name in path:
        if not isinstance(record, Mapping) or record.get(name) is None:
            raise ValueError(f"question {key!r} has no `{'.'.join(path)}`")
        record = record[name]
    if not isinstance(record, kind):
        raise ValueError(
            f"question {key!r}: `{'.'.join(path)}` must be {_KINDS[kind]}, saw {record!r}"
        )
    return record


def grounding_score(
    key: str,
    question: Question,
    scene_graphs: Mapping[str, Mapping[str, Any]],
    attention: Mapping[str, Any],
    *,
    object_features: bool = False,
) -> float:
    """Attention on the regions of one question: over regions and cells, the cell's weight times
    the part of the cell that the region covers. Cells under two regions count twice.

    Args:
        key: the question's id.
        question, scene_graphs, attention, object_features: as in `gqa.gqa_scores`.

    Raises:
        ValueError: names the question and what is wrong.
    """
    if key not in attention:
        raise ValueError(f"question {key!r} has no attention")
    image = value_at(key, question, "imageId", kind=str)
    if image not in scene_graphs:
        raise ValueError(f"question {key!r}: image {image!r} has no scene graph")
    boxes, weights = (_object_cells if object_features else _map_cells)(key, attention[key])
    regions = _regions(key, question, image, scene_graphs[image])
    return sum(float(weights @ _covered(boxes, region)) for region in regions)


def _regions(key: str, question: Question, image: str, graph: Mapping[str, Any]) -> Iterator[Box]:
    """Boxes of the objects that the question and its full answer point to.

    The official script means to add the whole picture for questions about the scene, but never
    does: it looks for the word among a step's field names.
    """
    for part in ("question", "fullAnswer"):
        for pointer in value_at(key, question, "annotations", part, kind=dict).values():
            try:
                thing = graph["objects"][pointer]
                x, y, w, h = (float(thing[side]) for side in ("x", "y", "w", "h"))
                width, height = float(graph["width"]), float(graph["height"])
                yield x / width, y / height, (x + w) / width, (y + h) / height
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(
                    f"question {key!r} points to object {pointer!r}, of which the scene graph of "
                    f"image {image!r} has no box"
                ) from error


def _map_cells(key: str, table: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Boxes [n * n, 4] and weights [n * n] of a map's cells."""
    weights = _numbers(key, table)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not weights.size:
        raise ValueError(
            f"attention of question {key!r}: expected a square map, saw shape {weights.shape}"
        )
    n = len(weights)
    x, y = np.divmod(np.arange(n * n), n)
    return np.stack([x, y, x + 1, y + 1], axis=1) / n, weights.ravel()


def _object_cells(key: str, table: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Boxes [n, 4] and weights [n] of attended objects."""
    rows = _numbers(key, table)
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise ValueError(
            f"attention of question {key!r}: expected rows of x0, y0, x1, y1, weight, saw shape "
            f"{rows.shape}"
        )
    if (rows[:, 2] <= rows[:, 0]).any() or (rows[:, 3] <= rows[:, 1]).any():
        raise ValueError(f"attention of question {key!r}: a box is empty")
    return rows[:, :4], rows[:, 4]


def _covered(boxes: NDArray[Any], region: Box) -> NDArray[Any]:
    """[n] the part of each box that lies within the region."""
    width = np.minimum(boxes[:, 2], region[2]) - np.maximum(boxes[:, 0], region[0])
    height = np.minimum(boxes[:, 3], region[3]) - np.maximum(boxes[:, 1], region[1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return width.clip(min=0) * height.clip(min=0) / area


def _numbers(key: str, table: Any) -> NDArray[Any]:
    try:
        numbers = np.asarray(table, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attention of question {key!r}: expected rows of numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"attention of question {key!r}: a weight is not a finite number")
    return numbers
