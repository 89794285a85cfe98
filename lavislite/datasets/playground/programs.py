"""What a GQA-like question is, and what its programs and texts are made of.

A question has a structural type (query, verify, logical, choose, compare), a semantic one (attr,
cat, obj, rel: what it is about) and a program, the steps that answer it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lavislite.datasets.playground.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    object_id,
    relations,
)

Step = tuple[str, tuple[int, ...], str]  # operation, the earlier steps it needs, argument
Fact = tuple[int, str]  # place of an object in the scene, attribute

VALUES = {"color": COLOURS, "size": SIZES, "shape": SHAPES}
OPPOSITE = {
    "above": "below",
    "below": "above",
    "to the left of": "to the right of",
    "to the right of": "to the left of",
}


@dataclass(frozen=True)
class StructuredQuestion:
    """A question, its answer, and GQA's names for what it is.

    Attributes:
        full: the answer as a sentence.
        detailed: the finer type, such as "verifyAttr".
        group: what the answers to choose from are, such as "color"; None for yes and no.
        mentions: words of `text` and `full` that name an object, and the object's place.
        needs: what answers it, and `tells`: what its answer makes known.
    """

    text: str
    answer: str
    full: str
    structural: str
    semantic: str
    detailed: str
    group: str | None
    mentions: tuple[tuple[str, int], ...]
    program: tuple[Step, ...]
    needs: frozenset[Fact] = frozenset()
    tells: frozenset[Fact] = frozenset()

    def entails(self, other: StructuredQuestion) -> bool:
        """Does who answers this one right know the answer of `other`?"""
        return bool(other.needs) and other.needs <= self.tells


Found = StructuredQuestion | None
Write = Callable[[Scene, random.Random], Found]


def value(thing: SceneObject, attribute: str) -> str:
    """The object's color, size or shape."""
    return str(getattr(thing, {"color": "colour"}.get(attribute, attribute)))


# ---- parts


def yes_or_no(
    text: str,
    true: bool,
    sentence: str,
    structural: str,
    semantic: str,
    detailed: str,
    *,
    mentions: tuple[tuple[str, int], ...],
    program: tuple[Step, ...],
    needs: Iterable[Fact] = (),
    tells: Iterable[Fact] = (),
) -> StructuredQuestion:
    answer = "yes" if true else "no"
    return StructuredQuestion(
        text,
        answer,
        f"{answer.title()}, {sentence}",
        structural,
        semantic,
        detailed,
        None,
        mentions,
        program,
        frozenset(needs),
        frozenset(tells),
    )


def unique(scene: Scene, attribute: str, stream: random.Random) -> int | None:
    """An object that its `attribute` alone tells from the others."""
    values = Counter(value(thing, attribute) for thing in scene.objects)
    alone = [i for i, o in enumerate(scene.objects) if values[value(o, attribute)] == 1]
    return stream.choice(alone) if alone else None


def two_shapes(scene: Scene, stream: random.Random) -> tuple[int, int] | None:
    """Two objects that their shapes alone tell from the others."""
    shapes = Counter(thing.shape for thing in scene.objects)
    alone = [i for i, thing in enumerate(scene.objects) if shapes[thing.shape] == 1]
    if len(alone) < 2:
        return None
    first, second = stream.sample(alone, 2)
    return first, second


def related(scene: Scene, stream: random.Random) -> tuple[int, int, str] | None:
    """Two objects that their shapes tell apart, and how the first lies to the second."""
    shapes = Counter(thing.shape for thing in scene.objects)
    found = [
        (a, b, name)
        for a, b, name in relations(scene.objects)
        if shapes[scene.objects[a].shape] == shapes[scene.objects[b].shape] == 1
    ]
    return stream.choice(found) if found else None


def other_than(word: str, words: Iterable[str], stream: random.Random) -> str:
    return stream.choice([other for other in words if other != word])


def select(scene: Scene, name: str, *places: int) -> Step:
    ids = ",".join(object_id(scene, i) for i in places) or "-"
    return "select", (), f"{name} ({ids})"


def by_colour(scene: Scene, i: int) -> tuple[Step, Step]:
    return select(scene, "object", i), ("filter color", (0,), scene.objects[i].colour)


def a_or_an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
