"""Questions about a scene, and what ten annotators answer, in the manner of VQAv2."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lavislite.datasets.playground.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    relations,
)

ANNOTATORS = 10
_AGREEMENT = 0.94  # how often an annotator gives the expected answer
_SYNONYMS = {"large": ("big",), "small": ("little", "tiny"), "center": ("middle",)}


@dataclass(frozen=True)
class Question:
    """`kind` is what it is about; `answer_type` is VQAv2's: yes/no, number or other."""

    text: str
    answer: str
    kind: str

    @property
    def answer_type(self) -> str:
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"


Write = Callable[[Scene, random.Random], "Question | None"]


def questions(scene: Scene, stream: random.Random, count: int) -> list[Question]:
    """Up to `count` different questions that have exactly one answer in `scene`."""
    found: dict[str, Question] = {}
    for _ in range(8 * count):
        write = stream.choices(list(_KINDS), list(_KINDS.values()))[0]
        question = write(scene, stream)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def annotators(question: Question, stream: random.Random) -> list[str]:
    """Ten answers: mostly the expected one, now and then a synonym or a slip."""
    answers = []
    for _ in range(ANNOTATORS):
        other = stream.random() > _AGREEMENT
        answers.append(stream.choice(_alternatives(question)) if other else question.answer)
    return answers


def _alternatives(question: Question) -> tuple[str, ...]:
    if question.answer_type == "yes/no":
        return ("no",) if question.answer == "yes" else ("yes",)
    if question.answer_type == "number":
        return (str(int(question.answer) + 1), str(int(question.answer) - 1))
    if question.answer in _SYNONYMS:
        return _SYNONYMS[question.answer]
    for words in (COLOURS, SHAPES):
        if question.answer in words:
            return tuple(word for word in words if word != question.answer)
    return ("not sure",)


def _unique(scene: Scene, attribute: str, stream: random.Random) -> SceneObject | None:
    """An object that its `attribute` alone tells from the others."""
    values = Counter(getattr(thing, attribute) for thing in scene.objects)
    alone = [thing for thing in scene.objects if values[getattr(thing, attribute)] == 1]
    return stream.choice(alone) if alone else None


def _colour(scene: Scene, stream: random.Random) -> Question | None:
    thing = _unique(scene, "shape", stream)
    return Question(f"what color is the {thing.shape}?", thing.colour, "color") if thing else None


def _shape(scene: Scene, stream: random.Random) -> Question | None:
    thing = _unique(scene, "colour", stream)
    return (
        Question(f"what shape is the {thing.colour} object?", thing.shape, "shape")
        if thing
        else None
    )


def _shape_at(scene: Scene, stream: random.Random) -> Question | None:
    thing = stream.choice(scene.objects)
    return Question(f"what shape is at the {thing.position}?", thing.shape, "shape at")


def _size(scene: Scene, stream: random.Random) -> Question | None:
    thing = _unique(scene, "shape", stream)
    return Question(f"what size is the {thing.shape}?", thing.size, "size") if thing else None


def _place(scene: Scene, stream: random.Random) -> Question | None:
    thing = _unique(scene, "shape", stream)
    return Question(f"where is the {thing.shape}?", thing.position, "where") if thing else None


def _count(scene: Scene, stream: random.Random) -> Question | None:
    noun = stream.choice(("objects", "shapes"))
    return Question(f"how many {noun} are there?", str(len(scene.objects)), "how many")


def _exists(scene: Scene, stream: random.Random) -> Question | None:
    """Half the time no; then often with a colour and a shape that are both in the scene."""
    thing = stream.choice(scene.objects)
    colour, shape = thing.colour, thing.shape
    if stream.random() < 0.5:
        others = [other for other in scene.objects if other is not thing] or [thing]
        if stream.random() < 0.5:
            colour = stream.choice((stream.choice(others).colour, stream.choice(COLOURS)))
        else:
            shape = stream.choice((stream.choice(others).shape, stream.choice(SHAPES)))
    true = any((o.colour, o.shape) == (colour, shape) for o in scene.objects)
    return Question(f"is there a {colour} {shape}?", "yes" if true else "no", "is there")


def _striped(scene: Scene, stream: random.Random) -> Question | None:
    thing = _unique(scene, "shape", stream)
    if thing is None or (thing.texture == "plain" and stream.random() < 0.67):
        return None  # stripes are rare: ask about both equally often
    answer = "yes" if thing.texture == "striped" else "no"
    return Question(f"is the {thing.shape} striped?", answer, "is the")


def _relation(scene: Scene, stream: random.Random) -> Question | None:
    found = relations(scene.objects)
    shapes = Counter(thing.shape for thing in scene.objects)
    found = [
        (a, b, name)
        for a, b, name in found
        if shapes[scene.objects[a].shape] == shapes[scene.objects[b].shape] == 1
    ]
    if not found:
        return None
    a, b, name = stream.choice(found)
    true = stream.random() < 0.5
    first, second = (a, b) if true else (b, a)
    one, two = scene.objects[first].shape, scene.objects[second].shape
    return Question(f"is the {one} {name} the {two}?", "yes" if true else "no", "relation")


_KINDS: dict[Write, float] = {
    _colour: 3.0,
    _shape: 2.0,
    _shape_at: 2.0,
    _size: 2.0,
    _place: 2.5,
    _count: 1.5,
    _exists: 2.0,
    _striped: 1.0,
    _relation: 1.5,
}
