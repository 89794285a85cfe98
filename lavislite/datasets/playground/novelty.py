"""Held-out pairs of colour and shape: what the captions for fine-tuning never show."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

from lavislite.datasets.playground.captions import captions
from lavislite.datasets.playground.scenes import COLOURS, SHAPES, Scene, sample_scene, split_of

DOMAINS = ("in-domain", "near-domain", "out-domain")
REFERENCES = 10
FIRST_ID = 3_000_000


def _first_by_hash(count: int) -> frozenset[tuple[str, str]]:
    def key(pair: tuple[str, str]) -> bytes:
        return hashlib.blake2b(f"novel {' '.join(pair)}".encode()).digest()

    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return frozenset(sorted(pairs, key=key)[:count])


HELD_OUT = _first_by_hash(16)  # of 64; every colour and every shape is left in other pairs


def domain(scene: Scene) -> str:
    """Without held-out pairs "in-domain", with nothing else "out-domain", else "near-domain"."""
    novel = sum((thing.colour, thing.shape) in HELD_OUT for thing in scene.objects)
    return DOMAINS[0 if not novel else 2 if novel == len(scene.objects) else 1]


def novel_scenes(count: int, seed: int) -> list[Scene]:
    """`count` different scenes of the test split, the domains in turn.

    Every fourth scene of a domain has three objects and the others two, so that the domains differ
    in nothing but what is new in them.
    """
    scenes: list[Scene] = []
    seen: set[str] = set()
    for index in range(count):
        stream = f"playground/{seed}/novel/{index}"
        wanted, size = DOMAINS[index % 3], 3 if (index // 3) % 4 == 3 else 2

        def accept(scene: Scene, wanted: str = wanted) -> bool:
            fits = domain(scene) == wanted and split_of(scene.signature) == "test"
            return fits and scene.signature not in seen

        scene = sample_scene(stream, FIRST_ID + index, accept, count=size)
        seen.add(scene.signature)
        scenes.append(scene)
    return scenes


def references(scene: Scene) -> list[str]:
    """Ten different captions of the scene."""
    texts: dict[str, None] = {}
    round_ = 0
    while len(texts) < REFERENCES:
        told = captions(replace(scene, seed=f"{scene.seed}/{round_}"))
        texts.update(dict.fromkeys(told))
        round_ += 1
    return random.Random(f"{scene.seed}/references").sample(list(texts), REFERENCES)
