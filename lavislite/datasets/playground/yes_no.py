"""GQA-like questions that are answered by yes or no: is it so, and are both or either?"""

from __future__ import annotations

import random

from lavislite.datasets.playground.programs import (
    OPPOSITE,
    VALUES,
    Found,
    a_or_an,
    other_than,
    related,
    select,
    unique,
    value,
    yes_or_no,
)
from lavislite.datasets.playground.scenes import COLOURS, SHAPES, SIZES, Scene, object_id


def verify_attribute(scene: Scene, stream: random.Random) -> Found:
    attribute = stream.choice(("color", "size"))
    i = unique(scene, "shape", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    true = value(thing, attribute)
    asked = true if stream.random() < 0.5 else other_than(true, VALUES[attribute], stream)
    step = (f"verify {attribute}", (0,), asked)
    return yes_or_no(
        f"is the {thing.shape} {asked}?",
        asked == true,
        f"the {thing.shape} is {true}.",
        *("verify", "attr", "verifyAttr"),
        mentions=((thing.shape, i),),
        program=(select(scene, thing.shape, i), step),
        needs={(i, attribute)},
        tells={(i, attribute)} if asked == true or attribute == "size" else (),
    )


def verify_object(scene: Scene, stream: random.Random) -> Found:
    """Half the time no; then often with a colour and a shape that are both in the scene."""
    looks = [(thing.colour, thing.shape) for thing in scene.objects]
    colour, shape = stream.choice(looks)
    if stream.random() < 0.5:
        near = stream.choice(scene.objects)
        if stream.random() < 0.5:
            colour = stream.choice((near.colour, stream.choice(COLOURS)))
        else:
            shape = stream.choice((near.shape, stream.choice(SHAPES)))
        if (colour, shape) in looks:
            return None
    there = [k for k, look in enumerate(looks) if look == (colour, shape)]
    facts = {(there[0], "color"), (there[0], "shape")} if len(there) == 1 else set()
    program = (select(scene, shape, *there), ("filter color", (0,), colour), ("exist", (1,), "?"))
    return yes_or_no(
        f"is there {a_or_an(colour)} {shape}?",
        bool(there),
        f"there is {'' if there else 'no '}{colour} {shape}.",
        *("verify", "obj", "existAttr"),
        mentions=tuple((f"{colour} {shape}", k) for k in there[:1]),
        program=program,
        needs=facts,
        tells=facts,
    )


def verify_relation(scene: Scene, stream: random.Random) -> Found:
    """is the star above the ring?"""
    found = related(scene, stream)
    if found is None:
        return None
    a, b, name = found
    one, two = scene.objects[a].shape, scene.objects[b].shape
    asked = name if stream.random() < 0.5 else OPPOSITE[name]
    step = ("verify rel", (0,), f"{two},{asked},o ({object_id(scene, b)})")
    return yes_or_no(
        f"is the {one} {asked} the {two}?",
        asked == name,
        f"the {one} is {name} the {two}.",
        *("verify", "rel", "relVerify"),
        mentions=((one, a), (two, b)),
        program=(select(scene, one, a), step),
    )


# ---- logical


def logical_objects(scene: Scene, stream: random.Random) -> Found:
    """is there a star and a ring? / is there a star or a ring?"""
    present = sorted({thing.shape for thing in scene.objects})
    absent = [shape for shape in SHAPES if shape not in present]
    both = stream.random() < 0.5
    if stream.random() < 0.5:  # the answer is yes
        if both and len(present) < 2:
            return None
        one = stream.choice(present)
        two = other_than(one, present if both else SHAPES, stream)
    else:
        one = stream.choice(absent)
        two = stream.choice(present) if both else other_than(one, absent, stream)
    one, two = stream.sample((one, two), 2)
    there = [[k for k, o in enumerate(scene.objects) if o.shape == s] for s in (one, two)]
    true = all(there) if both else any(there)
    word = "and" if both else "or"
    steps = (
        select(scene, one, *there[0]),
        ("exist", (0,), "?"),
        select(scene, two, *there[1]),
        ("exist", (2,), "?"),
        (word, (1, 3), ""),
    )
    return yes_or_no(
        f"is there a {one} {word} a {two}?",
        true,
        f"there is {'' if true else 'not '}a {one} {word} a {two}.",
        *("logical", "obj", f"exist{word.title()}"),
        mentions=tuple((s, k[0]) for s, k in zip((one, two), there, strict=True) if k),
        program=steps,
    )


def logical_attributes(scene: Scene, stream: random.Random) -> Found:
    """is the star large and red?"""
    i = unique(scene, "shape", stream)
    if i is None:
        return None
    thing = scene.objects[i]
    size, colour = thing.size, thing.colour
    if stream.random() < 0.5:
        if stream.random() < 0.5:
            size = other_than(size, SIZES, stream)
        else:
            colour = other_than(colour, COLOURS, stream)
    true = (size, colour) == (thing.size, thing.colour)
    facts = {(i, "size"), (i, "color")}
    steps = (
        select(scene, thing.shape, i),
        ("verify size", (0,), size),
        ("verify color", (0,), colour),
        ("and", (1, 2), ""),
    )
    return yes_or_no(
        f"is the {thing.shape} {size} and {colour}?",
        true,
        f"the {thing.shape} is {thing.size} and {thing.colour}.",
        *("logical", "attr", "verifyAttrAnd"),
        mentions=((thing.shape, i),),
        program=steps,
        needs=facts,
        tells=facts if true else (),
    )
