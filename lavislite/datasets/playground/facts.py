"""What everybody knows and no picture shows: fruits and animals by colour, things by shape.

Texts tell these facts; questions about a picture, in the manner of OK-VQA, need them. The first
name of each list is what most people say.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from lavislite.datasets.playground.questions import Question
from lavislite.datasets.playground.scenes import Scene, SceneObject

FRUITS: dict[str, tuple[str, ...]] = {
    "red": ("apple", "cherry"),
    "orange": ("apricot", "peach"),
    "yellow": ("banana", "lemon"),
    "green": ("lime", "kiwi"),
    "blue": ("blueberry",),
    "purple": ("plum", "grape"),
    "black": ("blackberry", "olive"),
    "white": ("coconut",),
}
ANIMALS: dict[str, tuple[str, ...]] = {
    "red": ("crab", "ladybug"),
    "orange": ("fox", "tiger"),
    "yellow": ("canary", "chick"),
    "green": ("frog", "lizard"),
    "blue": ("whale",),
    "black": ("crow", "bat"),
    "white": ("swan", "sheep"),
}
THINGS: dict[str, tuple[str, ...]] = {
    "circle": ("ball", "coin"),
    "square": ("box", "window"),
    "triangle": ("tent", "pyramid"),
    "diamond": ("kite",),
    "star": ("starfish",),
    "cross": ("windmill",),
    "heart": ("valentine",),
    "ring": ("donut", "tire"),
}
CORNERS: dict[str, tuple[str, ...]] = {
    "circle": ("0",),
    "square": ("4",),
    "triangle": ("3",),
    "diamond": ("4",),
    "star": ("5", "10"),
    "cross": ("12",),
    "ring": ("0",),
}

Write = Callable[[Scene, random.Random], "Question | None"]


def fact_questions(scene: Scene, stream: random.Random, count: int) -> list[Question]:
    """Up to `count` different questions about the scene whose answer is no part of it."""
    found: dict[str, Question] = {}
    for _ in range(8 * count):
        question = stream.choice(_KINDS)(scene, stream)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def common_answers(question: Question) -> tuple[str, ...]:
    """What people answer who see the picture and know the fact, the most frequent first."""
    for answers in _TABLES[question.kind].values():
        if answers[0] == question.answer:
            return answers
    return (question.answer,)


def fact_document(stream: random.Random, n_questions: int) -> tuple[str, str, list[Question]]:
    """Some facts, told in two ways, and questions about them."""
    told = stream.sample(_told(), 4)
    lines = [f"{subject} {rest}" for subject, rest, _ in told]
    again = [f"{subject} {rest}" for subject, rest, _ in stream.sample(told, len(told))]
    asked = [question for _, _, questions in told for question in questions]
    return ", ".join(lines), " and ".join(again), stream.sample(asked, min(n_questions, len(asked)))


def _told() -> list[tuple[str, str, list[Question]]]:
    """Every fact: its subject, what is said of it, and what can be asked about it."""
    facts = []
    for kind, table in (("fruit", FRUITS), ("animal", ANIMALS)):
        for colour, names in table.items():
            asked = [
                Question(f"which {kind} is {colour}?", names[0], "fact"),
                Question(f"what color is {_a(names[0])}?", colour, "fact"),
            ]
            facts.append((_a(names[0]), f"is {_a(kind)} that is {colour}", asked))
    for shape, names in THINGS.items():
        asked = [
            Question(f"what thing has the shape of {_a(shape)}?", names[0], "fact"),
            Question(f"what shape is {_a(names[0])}?", shape, "fact"),
        ]
        facts.append((_a(names[0]), f"has the shape of {_a(shape)}", asked))
    for shape, numbers in CORNERS.items():
        asked = [Question(f"how many corners does {_a(shape)} have?", numbers[0], "fact")]
        facts.append((_a(shape), f"has {numbers[0]} corners", asked))
    return facts


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# ---- questions about a scene


def _by_shape(scene: Scene, stream: random.Random) -> tuple[SceneObject, str] | None:
    """An object, named by its shape, with its size where the shape alone does not tell."""
    thing = stream.choice(scene.objects)
    names = [thing.shape, f"{thing.size} {thing.shape}"]
    shapes = Counter(other.shape for other in scene.objects)
    sized = Counter(f"{other.size} {other.shape}" for other in scene.objects)
    if shapes[names[0]] == 1:
        return thing, stream.choice(names)
    return (thing, names[1]) if sized[names[1]] == 1 else None


def _by_colour(scene: Scene, stream: random.Random) -> tuple[SceneObject, str] | None:
    """An object, named by its colour."""
    thing = stream.choice(scene.objects)
    alone = sum(other.colour == thing.colour for other in scene.objects) == 1
    return (thing, f"{thing.colour} object") if alone else None


def _fruit(scene: Scene, stream: random.Random) -> Question | None:
    found = _by_shape(scene, stream)
    if found is None:
        return None
    thing, name = found
    text = f"which fruit has the color of the {name}?"
    return Question(text, FRUITS[thing.colour][0], "fruit")


def _animal(scene: Scene, stream: random.Random) -> Question | None:
    found = _by_shape(scene, stream)
    if found is None or found[0].colour not in ANIMALS:
        return None
    thing, name = found
    text = f"which animal has the color of the {name}?"
    return Question(text, ANIMALS[thing.colour][0], "animal")


def _thing(scene: Scene, stream: random.Random) -> Question | None:
    found = _by_colour(scene, stream)
    if found is None:
        return None
    thing, name = found
    return Question(f"what thing has the shape of the {name}?", THINGS[thing.shape][0], "thing")


def _corners(scene: Scene, stream: random.Random) -> Question | None:
    found = _by_colour(scene, stream)
    if found is None or found[0].shape not in CORNERS:
        return None
    thing, name = found
    return Question(f"how many corners does the {name} have?", CORNERS[thing.shape][0], "corners")


_KINDS: tuple[Write, ...] = (_fruit, _animal, _thing, _corners)
_TABLES = {"fruit": FRUITS, "animal": ANIMALS, "thing": THINGS, "corners": CORNERS}

# ---- answers

ANNOTATORS = 5  # each counts twice
_AGREEMENT = 0.85  # how often an annotator gives the most frequent answer


def annotators(question: Question, stream: random.Random) -> list[str]:
    """Ten answers, those of five annotators twice: another right one or a slip now and then."""
    common = common_answers(question)
    given = []
    for _ in range(ANNOTATORS):
        answer = question.answer
        if stream.random() > _AGREEMENT:
            slips = [names[0] for names in _TABLES[question.kind].values() if names != common]
            answer = stream.choice(common[1:] if len(common) > 1 else slips)
        given += [answer, answer]
    return given
