"""Are the objects that a caption names really in the scene? Read off the scene graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lavislite.datasets.playground.scenes import COLOURS, SHAPES

_WORD = re.compile(r"[a-z]+")
_PLACE = re.compile(r"\b(top|bottom)( left| right)?\b|\b(left|right)\b|\b(center|middle)\b")
_RELATION = re.compile(r"\bto the (left|right) of\b")
_PLACE_FIRST = re.compile(r"^(at|in|on) the ")


@dataclass(frozen=True)
class Named:
    """An object as a caption names it; `position` is None when it says none."""

    colour: str
    shape: str
    position: str | None


def named_objects(caption: str) -> list[Named]:
    """Every "<colour> <shape>" of a caption, with the place said of it."""
    text = _RELATION.sub("|", caption.lower())
    words = list(_WORD.finditer(text))
    found = [
        (first.start(), second.end(), first.group(), second.group())
        for first, second in pairwise(words)
        if first.group() in COLOURS and second.group() in SHAPES
    ]
    before = _PLACE_FIRST.match(text) is not None
    named = []
    for k, (start, end, colour, shape) in enumerate(found):
        low = found[k - 1][1] if k else 0
        high = found[k + 1][0] if k + 1 < len(found) else len(text)
        place = _PLACE.search(text[low:start] if before else text[end:high])
        position = place.group().replace("middle", "center") if place else None
        named.append(Named(colour, shape, position))
    return named


def score_captions(
    captions: Mapping[str, str], graphs: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """How true captions are, in percent.

    ``objects_true``: of the objects they name, those whose colour and shape one object of the scene
    has; ``objects_true_with_position``: the same of those said to be somewhere, place included;
    ``objects_found``: of the objects in the scenes, those that are named.

    Args:
        captions, graphs: by the same ids.
    """
    named = true = placed = placed_true = present = found = 0
    for key, caption in captions.items():
        things = [
            (thing["attributes"][0], thing["name"], thing["position"])
            for thing in graphs[key]["objects"].values()
        ]
        told = named_objects(caption)
        looks = {thing[:2] for thing in things}
        named += len(told)
        true += sum((one.colour, one.shape) in looks for one in told)
        somewhere = [one for one in told if one.position is not None]
        placed += len(somewhere)
        placed_true += sum((one.colour, one.shape, one.position) in things for one in somewhere)
        present += len(things)
        seen = {(one.colour, one.shape) for one in told}
        found += sum(thing[:2] in seen for thing in things)
    return {
        "objects_true": 100.0 * true / max(named, 1),
        "objects_true_with_position": 100.0 * placed_true / max(placed, 1),
        "objects_found": 100.0 * found / max(present, 1),
    }
