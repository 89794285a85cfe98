"""The playground's world: scenes of one to four objects, drawn at random from a seed.

An object has a shape, a colour, a size, a texture and a cell of a 3 x 3 grid. What a scene *is*,
its `signature`, leaves out the jitter of the drawing; the split a scene belongs to follows from
that alone, so no training scene can appear in validation or test, whatever the seed.

`random.Random` draws everything here: its stream for a string seed is the same on every machine and
Python version, which numpy does not promise.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
GRID = 3
SPLITS = ("train", "val", "test")

COUNT_WEIGHTS = (0.35, 0.45, 0.15, 0.05)  # scenes of 1, 2, 3, 4 objects
STRIPED_RATE = 0.25
RADII = {"small": 0.096, "large": 0.142}  # of the image side
JITTER = 0.02  # of the image side, each way

VOCABULARY: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "texture": TEXTURES,
    "position": POSITIONS,
}


@dataclass(frozen=True)
class SceneObject:
    """One object; `x`, `y` (centre) and `radius` are fractions of the image side."""

    shape: str
    colour: str
    size: str
    texture: str
    position: str
    x: float
    y: float
    radius: float

    @property
    def key(self) -> str:
        """What the object is, without the jitter: ``"red circle large plain top left"``."""
        return f"{self.colour} {self.shape} {self.size} {self.texture} {self.position}"

    @property
    def column(self) -> int:
        return POSITIONS.index(self.position) % GRID

    @property
    def row(self) -> int:
        return POSITIONS.index(self.position) // GRID


@dataclass(frozen=True)
class Scene:
    """One picture's content.

    `seed` names the stream of everything that is not content: clutter, noise, choice of words.
    """

    image_id: int
    seed: str
    objects: tuple[SceneObject, ...]

    @property
    def signature(self) -> str:
        return "; ".join(sorted(thing.key for thing in self.objects))


def split_of(signature: str) -> str:
    """The split a scene belongs to: about 6 % val, 12 % test, the rest train."""
    bucket = int.from_bytes(hashlib.blake2b(signature.encode(), digest_size=4).digest(), "big") % 16
    return "val" if bucket == 0 else "test" if bucket <= 2 else "train"


def sample_scene(
    seed: str,
    image_id: int,
    accept: Callable[[Scene], bool] = lambda _: True,
    count: int | None = None,
) -> Scene:
    """The first scene of the stream `seed` that `accept` takes; `count` objects if that is given.

    Raises:
        RuntimeError: nothing was accepted in 10,000 draws.
    """
    stream = random.Random(seed)
    for _ in range(10_000):
        scene = Scene(image_id, seed, _sample_objects(stream, count))
        if accept(scene):
            return scene
    raise RuntimeError(f"no scene of the stream '{seed}' was accepted in 10,000 draws.")


def sample_split(split: str, count: int, seed: int) -> list[Scene]:
    """`count` scenes of one split; image ids start at 0, 1,000,000 and 2,000,000.

    Validation and test never show a scene twice, so a full caption names one image. Training may.

    Raises:
        ValueError: more validation or test scenes than the world has room for.
    """
    limit = 20_000
    if split != "train" and count > limit:
        raise ValueError(f"the {split} split holds at most {limit} scenes, {count} were asked for.")
    first = SPLITS.index(split) * 1_000_000
    seen: set[str] = set()

    def accept(scene: Scene) -> bool:
        fits = split_of(scene.signature) == split
        return fits and (split == "train" or scene.signature not in seen)

    scenes = []
    for index in range(count):
        scene = sample_scene(f"playground/{seed}/{split}/{index}", first + index, accept)
        seen.add(scene.signature)
        scenes.append(scene)
    return scenes


def scene_graph(scene: Scene, image_size: int) -> dict[str, Any]:
    """The scene in the layout of GQA's scene graphs, plus a named `position` per object.

    Boxes are pixels. A relation needs the objects to be in different columns (or rows).
    """
    objects = {}
    for index, thing in enumerate(scene.objects):
        left, top = (
            round((thing.x - thing.radius) * image_size),
            round((thing.y - thing.radius) * image_size),
        )
        side = round(2 * thing.radius * image_size)
        objects[object_id(scene, index)] = {
            "name": thing.shape,
            "x": left,
            "y": top,
            "w": side,
            "h": side,
            "attributes": [thing.colour, thing.size, thing.texture],
            "position": thing.position,
            "relations": [
                {"name": name, "object": object_id(scene, other)}
                for first, other, name in relations(scene.objects)
                if first == index
            ],
        }
    return {"width": image_size, "height": image_size, "objects": objects}


def object_id(scene: Scene, index: int) -> str:
    return str(scene.image_id * 10 + index)


def relations(objects: Sequence[SceneObject]) -> list[tuple[int, int, str]]:
    """``(a, b, name)`` for every ordered pair: a is `name` b."""
    found = []
    for a, b in permutations(range(len(objects)), 2):
        columns, rows = (objects[a].column, objects[b].column), (objects[a].row, objects[b].row)
        if columns[0] != columns[1]:
            found.append((a, b, "to the left of" if columns[0] < columns[1] else "to the right of"))
        if rows[0] != rows[1]:
            found.append((a, b, "above" if rows[0] < rows[1] else "below"))
    return found


def _sample_objects(stream: random.Random, count: int | None) -> tuple[SceneObject, ...]:
    if count is None:
        count = stream.choices((1, 2, 3, 4), COUNT_WEIGHTS)[0]
    positions = stream.sample(POSITIONS, count)
    return tuple(_sample_object(stream, position) for position in positions)


def _sample_object(stream: random.Random, position: str) -> SceneObject:
    row, column = divmod(POSITIONS.index(position), GRID)
    size = stream.choice(SIZES)
    texture = TEXTURES[stream.random() < STRIPED_RATE]
    return SceneObject(
        shape=stream.choice(SHAPES),
        colour=stream.choice(COLOURS),
        size=size,
        texture=texture,
        position=position,
        # Quantised, so that the drawing of a mask can be reused and a text file holds it exactly.
        x=_quantise((column + 0.5) / GRID + stream.uniform(-JITTER, JITTER)),
        y=_quantise((row + 0.5) / GRID + stream.uniform(-JITTER, JITTER)),
        radius=_quantise(RADII[size] * stream.uniform(0.96, 1.06)),
    )


def _quantise(value: float) -> float:
    return round(value * 128) / 128
