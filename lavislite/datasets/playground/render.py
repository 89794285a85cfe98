"""Draws a scene: anti-aliased shapes by signed distance, over a cluttered and noisy background."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavislite.datasets.playground.scenes import Scene, SceneObject

Image = NDArray[np.uint8]
Array = NDArray[np.floating[Any]]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 225, 50),
    "green": (30, 160, 60),
    "blue": (35, 80, 225),
    "purple": (150, 50, 190),
    "black": (15, 15, 20),
    "white": (250, 250, 250),
}
STRIPE_PERIOD = 0.07  # of the image side


@dataclass(frozen=True)
class Look:
    """What is behind the objects, and how noisy the picture is; brightness from 0 to 255.

    Attributes:
        grey: the darkest and the lightest background, and `tint` how far its colours differ.
        slope: how much brighter one side may be than the other.
        lines, specks: at least so many, and fewer than that; `line`, `speck`: how much they stand
            out.
        noise: standard deviation.
    """

    grey: tuple[float, float] = (105, 175)
    tint: float = 12
    slope: float = 25
    lines: tuple[int, int] = (2, 5)
    line: float = 30
    specks: tuple[int, int] = (8, 24)
    speck: float = 35
    noise: float = 5.0


PLAIN = Look()
BUSY = Look((90, 190), 25, 50, (5, 10), 45, (40, 90), 60, 11.0)  # the pictures of another source


def render(scene: Scene, image_size: int, look: Look = PLAIN) -> Image:
    """The scene as [image_size, image_size, 3] bytes; the same scene gives the same bytes."""
    noise = np.random.Generator(np.random.PCG64(_stream(scene.seed)))
    canvas = _background(noise, image_size, look)
    for thing in scene.objects:
        rows, columns, alpha = _mask(thing.shape, thing.x, thing.y, thing.radius, image_size)
        patch = canvas[rows, columns]
        patch += alpha * (_paint(thing, image_size, rows, columns) - patch)
    canvas += noise.standard_normal(canvas.shape, dtype=np.float32) * look.noise
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _stream(seed: str) -> int:
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big")


def _background(noise: np.random.Generator, size: int, look: Look) -> Array:
    """A muted gradient with a few faint lines and specks: [size, size, 3]."""
    x, y = _pixels(size)
    grey = noise.uniform(*look.grey) + noise.uniform(-look.tint, look.tint, 3)
    angle, slope = noise.uniform(0, 2 * math.pi), noise.uniform(0, look.slope)
    shade = slope * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
    canvas = (grey + shade[..., None]).astype(np.float32)
    for _ in range(noise.integers(*look.lines)):
        angle, offset = noise.uniform(0, math.pi), noise.uniform(-0.5, 0.5)
        gap = np.abs(math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5) - offset)
        canvas += (np.clip(1.0 - gap * size, 0, 1) * noise.uniform(-look.line, look.line))[
            ..., None
        ]
    specks = noise.integers(0, size, (2, noise.integers(*look.specks)))
    canvas[specks[1], specks[0]] += noise.uniform(-look.speck, look.speck, (specks.shape[1], 3))
    return canvas


def _paint(thing: SceneObject, size: int, rows: slice, columns: slice) -> Array:
    """The object's colour, [3], or its stripes in that window, [h, w, 3]."""
    colour = np.array(PALETTE[thing.colour], dtype=np.float32)
    if thing.texture == "plain":
        return colour
    # Stripes go half-way to white on dark colours and half-way to black on light ones.
    other = 0.5 * colour + 0.5 * (255.0 if colour.mean() < 120 else 0.0)
    stripes = _stripes(size)[rows, columns, None]
    return colour + stripes * (other.astype(np.float32) - colour)


@lru_cache(maxsize=4)
def _pixels(size: int) -> tuple[Array, Array]:
    """Pixel centres as fractions of the side: x and y, each [size, size]."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(line, line)
    return x, y


@lru_cache(maxsize=4)
def _stripes(size: int) -> Array:
    x, y = _pixels(size)
    wave = np.sin((x + y) * (2 * math.pi / (STRIPE_PERIOD * math.sqrt(2))))
    return np.clip(0.5 + 2 * wave, 0, 1)


@lru_cache(maxsize=8192)
def _mask(shape: str, cx: float, cy: float, radius: float, size: int) -> tuple[slice, slice, Array]:
    """The rows and columns the shape reaches, and how much of each pixel it covers, [h, w, 1]."""
    reach = 1.2 * radius * size + 1
    rows = slice(max(0, int(cy * size - reach)), min(size, math.ceil(cy * size + reach)))
    columns = slice(max(0, int(cx * size - reach)), min(size, math.ceil(cx * size + reach)))
    x, y = (line[rows, columns] for line in _pixels(size))
    distance = _distance(shape, (x - cx) / radius, (y - cy) / radius) * radius * size
    return rows, columns, np.clip(0.5 - distance, 0, 1).astype(np.float32)[..., None]


def _distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to the outline of the unit shape, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.74) - 0.26
    return _polygon_distance(_OUTLINES[shape], x, y)


def _polygon_distance(corners: list[tuple[float, float]], x: Array, y: Array) -> Array:
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey != 0:  # even-odd rule along a horizontal ray
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    return [
        (
            (1.08 if k % 2 == 0 else inner) * math.sin(math.pi * k / points),
            -(1.08 if k % 2 == 0 else inner) * math.cos(math.pi * k / points),
        )
        for k in range(2 * points)
    ]


def _heart(steps: int) -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / steps for k in range(steps)]
    return [
        (
            math.sin(t) ** 3 * 1.05,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5
            - 0.1,
        )
        for t in turns
    ]


_ARM = 0.32
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "diamond": [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(5, 0.42),
    "cross": [
        (-_ARM, -1.0),
        (_ARM, -1.0),
        (_ARM, -_ARM),
        (1.0, -_ARM),
        (1.0, _ARM),
        (_ARM, _ARM),
        (_ARM, 1.0),
        (-_ARM, 1.0),
        (-_ARM, _ARM),
        (-1.0, _ARM),
        (-1.0, -_ARM),
        (-_ARM, -_ARM),
    ],
    "heart": _heart(28),
}
