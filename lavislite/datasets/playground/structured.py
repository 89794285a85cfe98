"""Questions in the manner of GQA, each with a small program over the scene graph."""

from __future__ import annotations

import random
from collections import Counter

from lavislite.datasets.playground.programs import (
    VALUES,
    Found,
    StructuredQuestion,
    Write,
    by_colour,
    other_than,
    related,
    select,
    two_shapes,
    unique,
    value,
    yes_or_no,
)
from lavislite.datasets.playground.scenes import SHAPES, Scene, object_id, relations
from lavislite.datasets.playground.yes_no import (
    logical_attributes,
    logical_objects,
    verify_attribute,
    verify_object,
    verify_relation,
)


def structured_questions(
    scene: Scene, stream: random.Random, count: int
) -> list[StructuredQuestion]:
    """Up to `count` different questions that have exactly one answer in `scene`."""
    found: dict[str, StructuredQuestion] = {}
    for _ in range(10 * count):
        write = stream.choices(list(_KINDS), list(_KINDS.values()))[0]
        question = write(scene, stream)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


# ---- query


def _query_attribute(scene: Scene, stream: random.Random) -> Found:
    attribute = stream.choice(("color", "color", "size"))
    i = unique(scene, "shape", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    answer = value(thing, attribute)
    return StructuredQuestion(
        f"what {attribute} is the {thing.shape}?",
        answer,
        f"The {thing.shape} is {answer}.",
        *("query", "attr", attribute, attribute),
        mentions=((thing.shape, i),),
        program=(select(scene, thing.shape, i), ("query", (0,), attribute)),
        needs=frozenset({(i, attribute)}),
        tells=frozenset({(i, attribute)}),
    )


def _query_shape(scene: Scene, stream: random.Random) -> Found:
    i = unique(scene, "color", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    name = f"{thing.colour} object"
    return StructuredQuestion(
        f"what shape is the {name}?",
        thing.shape,
        f"The {name} is a {thing.shape}.",
        *("query", "cat", "category", "shape"),
        mentions=((name, i),),
        program=(*by_colour(scene, i), ("query", (1,), "name")),
        needs=frozenset({(i, "shape")}),
        tells=frozenset({(i, "shape"), (i, "color")}),
    )


def _query_relation(scene: Scene, stream: random.Random) -> Found:
    """what shape is to the left of the star?"""
    shapes = Counter(thing.shape for thing in scene.objects)
    ways = Counter((b, name) for _, b, name in relations(scene.objects))
    found = [
        (a, b, name)
        for a, b, name in relations(scene.objects)
        if shapes[scene.objects[b].shape] == 1 and ways[b, name] == 1
    ]
    if not found:
        return None
    a, b, name = stream.choice(found)
    one, two = scene.objects[a].shape, scene.objects[b].shape
    relate = f"_,{name},s ({object_id(scene, a)})"
    return StructuredQuestion(
        f"what shape is {name} the {two}?",
        one,
        f"The {one} is {name} the {two}.",
        *("query", "rel", "categoryRelS", "shape"),
        mentions=((two, b), (one, a)),
        program=(select(scene, two, b), ("relate", (0,), relate), ("query", (1,), "name")),
    )


# ---- choose


def _choose_attribute(scene: Scene, stream: random.Random) -> Found:
    """is the star red or blue?"""
    attribute = stream.choice(("color", "color", "size"))
    i = unique(scene, "shape", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    true = value(thing, attribute)
    others = [value(o, attribute) for o in scene.objects if value(o, attribute) != true]
    wrong = stream.choice(others) if others else other_than(true, VALUES[attribute], stream)
    one, two = stream.sample((true, wrong), 2)
    step = (f"choose {attribute}", (0,), f"{one}|{two}")
    return StructuredQuestion(
        f"is the {thing.shape} {one} or {two}?",
        true,
        f"The {thing.shape} is {true}.",
        *("choose", "attr", "chooseAttr", attribute),
        mentions=((thing.shape, i),),
        program=(select(scene, thing.shape, i), step),
        needs=frozenset({(i, attribute)}),
        tells=frozenset({(i, attribute)}),
    )


def _choose_shape(scene: Scene, stream: random.Random) -> Found:
    """is the red object a star or a ring?"""
    i = unique(scene, "color", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    others = [o.shape for o in scene.objects if o.shape != thing.shape]
    wrong = stream.choice(others) if others else other_than(thing.shape, SHAPES, stream)
    one, two = stream.sample((thing.shape, wrong), 2)
    name = f"{thing.colour} object"
    return StructuredQuestion(
        f"is the {name} a {one} or a {two}?",
        thing.shape,
        f"The {name} is a {thing.shape}.",
        *("choose", "cat", "categoryThis", "shape"),
        mentions=((name, i),),
        program=(*by_colour(scene, i), ("choose name", (1,), f"{one}|{two}")),
        needs=frozenset({(i, "shape")}),
        tells=frozenset({(i, "shape"), (i, "color")}),
    )


def _choose_relation(scene: Scene, stream: random.Random) -> Found:
    """is the star above or below the ring?"""
    found = related(scene, stream)
    if found is None:
        return None
    a, b, name = found
    one, two = scene.objects[a].shape, scene.objects[b].shape
    pair = ("above", "below") if name in ("above", "below") else ("left", "right")
    answer = name.removeprefix("to the ").removesuffix(" of")
    asked = "above or below" if pair[0] == "above" else "to the left or to the right of"
    relate = f"{two},{'|'.join(pair)},o ({object_id(scene, b)})"
    return StructuredQuestion(
        f"is the {one} {asked} the {two}?",
        answer,
        f"The {one} is {name} the {two}.",
        *("choose", "rel", "relChooser", "place"),
        mentions=((one, a), (two, b)),
        program=(select(scene, one, a), ("choose rel", (0,), relate)),
    )


# ---- compare


def _compare_sizes(scene: Scene, stream: random.Random) -> Found:
    """which is larger, the star or the ring?"""
    pair = two_shapes(scene, stream)
    if pair is None or scene.objects[pair[0]].size == scene.objects[pair[1]].size:
        return None
    word = stream.choice(("larger", "smaller"))
    (i, one), (k, two) = ((n, scene.objects[n].shape) for n in pair)
    first = scene.objects[i].size == ("large" if word == "larger" else "small")
    answer, other = (one, two) if first else (two, one)
    steps = (
        select(scene, one, i),
        select(scene, two, k),
        (f"choose {word}", (0, 1), ""),
    )
    return StructuredQuestion(
        f"which is {word}, the {one} or the {two}?",
        answer,
        f"The {answer} is {word} than the {other}.",
        *("compare", "attr", "comparativeChoose", "shape"),
        mentions=((one, i), (two, k)),
        program=steps,
        needs=frozenset({(i, "size"), (k, "size")}),
        tells=frozenset({(i, "size"), (k, "size")}),
    )


def _compare_attribute(scene: Scene, stream: random.Random) -> Found:
    """do the star and the ring have the same color?"""
    attribute = stream.choice(("color", "size"))
    pair = two_shapes(scene, stream)
    if pair is None:
        return None
    (i, one), (k, two) = ((n, scene.objects[n]) for n in pair)
    true = value(one, attribute) == value(two, attribute)
    if attribute == "color" and not true and stream.random() < 0.75:
        return None  # two objects seldom have one colour: ask about both equally often
    steps = (
        select(scene, one.shape, i),
        select(scene, two.shape, k),
        (f"same {attribute}", (0, 1), ""),
    )
    return yes_or_no(
        f"do the {one.shape} and the {two.shape} have the same {attribute}?",
        true,
        f"the {one.shape} and the {two.shape} {'' if true else 'do not '}have the same "
        f"{attribute}.",
        *("compare", "attr", "twoSame"),
        mentions=((one.shape, i), (two.shape, k)),
        program=steps,
        needs={(i, attribute), (k, attribute)},
    )


_KINDS: dict[Write, float] = {
    _query_attribute: 2.0,
    _query_shape: 1.5,
    _query_relation: 1.0,
    verify_attribute: 2.0,
    verify_object: 1.0,
    verify_relation: 0.5,
    logical_objects: 1.5,
    logical_attributes: 1.0,
    _choose_attribute: 2.0,
    _choose_shape: 1.0,
    _choose_relation: 0.5,
    _compare_sizes: 1.5,
    _compare_attribute: 1.0,
}
