"""Five true captions per scene, in varied grammar; almost every one fits its scene alone."""

from __future__ import annotations

import random
from collections.abc import Callable

from lavislite.datasets.playground.scenes import Scene, SceneObject, relations

CAPTIONS_PER_IMAGE = 5

_SIZE_WORDS = {"small": ("small", "small", "small", "little"), "large": ("large", "large", "big")}
_WHERE = {
    "center": ("in the center", "in the middle"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left",),
    "right": ("on the right",),
    "top left": ("at the top left", "in the top left"),
    "top right": ("at the top right", "in the top right"),
    "bottom left": ("at the bottom left", "in the bottom left"),
    "bottom right": ("at the bottom right", "in the bottom right"),
}
_NUMBERS = ("no", "one", "two", "three", "four")
_OPENINGS = ("", "", "a picture of ", "there is ", "we see ", "an image with ")


def captions(scene: Scene) -> list[str]:
    """Five different captions, the same for the same scene and seed.

    Captions of three and four objects are terse, those of four name no sizes and textures, so that
    none is longer than twenty-three words.
    """
    stream = random.Random(f"{scene.seed}/captions")
    plan: list[Callable[[Scene, random.Random], str]]
    if len(scene.objects) > 2:
        plan = [_terse, _terse, _terse, _short_names, _counted]
    else:
        plan = [_list_of_names, _list_of_names, _place_first, _statement, _terse]
    if len(scene.objects) == 2 and stream.random() < 0.5:
        plan[1] = _related
    result: list[str] = []
    for write in plan:
        text = write(scene, stream)
        while text in result:  # another order or another word
            text = write(scene, stream)
        result.append(text)
    stream.shuffle(result)
    return result


def full_caption(scene: Scene, stream: random.Random) -> str:
    """A caption that leaves nothing out, whatever its length."""
    write = stream.choice((_list_of_names, _place_first, _statement, _terse_names))
    return write(scene, stream)


def _list_of_names(scene: Scene, stream: random.Random) -> str:
    """a picture of a large red circle at the top left and a small blue star in the center"""
    things = _shuffled(scene, stream)
    parts = [f"a {_name(thing, stream)} {_where(thing, stream)}" for thing in things]
    opening = stream.choice(_OPENINGS) if len(parts) == 1 else ""
    return opening + _join(parts)


def _short_names(scene: Scene, stream: random.Random) -> str:
    """a red circle top left, a blue star center and a green ring right"""
    things = _shuffled(scene, stream)
    return _join([f"{_article(t.colour)} {t.colour} {t.shape} {t.position}" for t in things])


def _place_first(scene: Scene, stream: random.Random) -> str:
    """at the top left there is a large red circle, in the center a small blue star"""
    first, *rest = _shuffled(scene, stream)
    verb = stream.choice((" there is a", " we see a", " is a", " a"))
    parts = [f"{_where(first, stream)}{verb} {_name(first, stream)}"]
    parts += [f"{_where(thing, stream)} a {_name(thing, stream)}" for thing in rest]
    return ", ".join(parts)


def _statement(scene: Scene, stream: random.Random) -> str:
    """the large red circle is at the top left and the small blue star is in the center"""
    parts = [
        f"the {_name(thing, stream)} is {_where(thing, stream)}"
        for thing in _shuffled(scene, stream)
    ]
    return _join(parts)


def _terse(scene: Scene, stream: random.Random) -> str:
    """large red circle top left, small blue star center"""
    return ", ".join(_terse_parts(scene, stream))


def _counted(scene: Scene, stream: random.Random) -> str:
    """three objects, red circle top left, blue star center, green ring right"""
    parts = [f"{t.colour} {t.shape} {t.position}" for t in _shuffled(scene, stream)]
    noun = stream.choice(("objects", "shapes"))
    return f"{_NUMBERS[len(parts)]} {noun}, {', '.join(parts)}"


def _terse_names(scene: Scene, stream: random.Random) -> str:
    """As `_terse`, with sizes and textures however many objects there are."""
    return ", ".join(f"{_name(t, stream)} {t.position}" for t in _shuffled(scene, stream))


def _terse_parts(scene: Scene, stream: random.Random) -> list[str]:
    things = _shuffled(scene, stream)
    if len(things) == 4:
        return [f"{t.colour} {t.shape} {t.position}" for t in things]
    return [f"{_name(thing, stream)} {thing.position}" for thing in things]


def _related(scene: Scene, stream: random.Random) -> str:
    """a large red circle to the left of a small blue star"""
    first, second, name = stream.choice(relations(scene.objects))
    a, b = scene.objects[first], scene.objects[second]
    return f"a {_name(a, stream)} {name} a {_name(b, stream)}"


def _name(thing: SceneObject, stream: random.Random) -> str:
    words = [stream.choice(_SIZE_WORDS[thing.size])]
    if thing.texture != "plain":
        words.append(thing.texture)
    return " ".join([*words, thing.colour, thing.shape])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _where(thing: SceneObject, stream: random.Random, short: bool = False) -> str:
    return thing.position if short else stream.choice(_WHERE[thing.position])


def _join(parts: list[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _shuffled(scene: Scene, stream: random.Random) -> list[SceneObject]:
    return stream.sample(scene.objects, len(scene.objects))
