"""RandAugment as BLIP uses it: [H, W, 3] uint8 arrays in and out, no OpenCV.

The geometric operations repeat OpenCV's fixed-point bilinear arithmetic (positions to 1/32 pixel),
so that the pixels are the original's. Draws come from torch's random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

Array = np.ndarray

MAX_LEVEL = 10
FILL = 128  # grey, where a picture is moved away
_POSITION_BITS = 10  # OpenCV: positions are computed to 1/1024 pixel ...
_FRACTION_BITS = 5  # ... and used to 1/32
_FRACTIONS = 1 << _FRACTION_BITS
_LANE = 20  # bits for one channel: 255 * 1024 + 512 needs 18


class RandAugment:
    """`n` operations drawn from `OPS`, each applied half of the time, at strength `level`."""

    def __init__(self, n: int = 2, level: float = 5) -> None:
        self.n = n
        self.level = level

    def __call__(self, image: Array) -> Array:
        for op in torch.randint(len(OPS), (self.n,)).tolist():
            apply, sign, use = list(OPS.values())[op], *torch.rand(2).tolist()
            if use <= 0.5:
                image = apply(image, self.level, -1.0 if sign > 0.5 else 1.0)
        return image


# ------------------------------------------------------------------------------------ one channel


def autocontrast(image: Array) -> Array:
    """Each channel stretched to the full range 0..255."""
    return _per_channel(image, _stretched)


def equalize(image: Array) -> Array:
    """Each channel with a histogram as flat as it gets."""
    return _per_channel(image, _flattened)


def _stretched(channel: Array) -> Array:
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return channel
    scale = 255 / (high - low)
    return _byte(np.arange(256) * scale - low * scale)[channel]


def _flattened(channel: Array) -> Array:
    counts = np.bincount(channel.ravel(), minlength=256)
    present = counts[counts > 0]
    step = int(present[:-1].sum()) // 255
    if step == 0:
        return channel
    below = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return _byte((step // 2 + below) // step)[channel]


def _per_channel(image: Array, change: Callable[[Array], Array]) -> Array:
    return np.stack([change(image[..., c]) for c in range(image.shape[-1])], axis=-1)


def _byte(values: Array) -> Array:
    return np.clip(values, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------ brightness


def brightness(image: Array, factor: float) -> Array:
    """Values times `factor`."""
    if factor == 1.0:
        return image
    return _byte(np.arange(256, dtype=np.float32) * np.float32(factor))[image]


def sharpness(image: Array, factor: float) -> Array:
    """Away from (`factor` > 1) or towards (< 1) a smoothed copy; the outermost pixels stay."""
    if factor == 1.0 or min(image.shape[:2]) < 3:
        return image
    wide = image.astype(np.float32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = wide[1:-1, 1:-1]
    smooth = np.rint((around + 4 * inner) / 13)  # centre weight 5 of 13
    result = image.copy()
    result[1:-1, 1:-1] = _byte(smooth + np.float32(factor) * (inner - smooth))
    return result


# -------------------------------------------------------------------------------------- geometry


def shear_x(image: Array, factor: float) -> Array:
    """Row y moves right by ``factor * y`` pixels."""
    return warp(image, (1.0, factor, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Array, factor: float) -> Array:
    """Column x moves down by ``factor * x`` pixels."""
    return warp(image, (1.0, 0.0, 0.0, factor, 1.0, 0.0))


def translate_x(image: Array, offset: float) -> Array:
    """Moves left by `offset` pixels."""
    return warp(image, (1.0, 0.0, -offset, 0.0, 1.0, 0.0))


def translate_y(image: Array, offset: float) -> Array:
    """Moves up by `offset` pixels."""
    return warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, -offset))


def rotate(image: Array, degrees: float) -> Array:
    """Counter-clockwise about the centre."""
    x, y = image.shape[1] / 2, image.shape[0] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warp(image, (cos, sin, (1 - cos) * x - sin * y, -sin, cos, sin * x + (1 - cos) * y))


def warp(image: Array, forward: tuple[float, ...]) -> Array:
    """`image` moved by the affine map ``(x, y) -> (a x + b y + c, d x + e y + f)``, bilinear.

    Args:
        image: [H, W, 3] uint8.
        forward: (a, b, c, d, e, f).
    """
    height, width, _ = image.shape
    corner, weights = _sources(height, width, forward)
    # The three channels side by side in one number: one gather and one product do for all.
    framed = np.full((height + 4, width + 4), _packed(FILL), dtype=np.uint64)
    framed[2:-2, 2:-2] = _packed(*np.moveaxis(image, -1, 0).astype(np.uint64))
    pixels = framed.ravel()
    total = np.full(height * width, _packed(_FRACTIONS**2 // 2), dtype=np.uint64)
    for offset, weight in zip((0, 1, width + 4, width + 5), weights, strict=True):
        total += pixels[offset:].take(corner) * weight
    channels = [
        (total >> np.uint64(lane + 2 * _FRACTION_BITS)).astype(np.uint8)
        for lane in (0, _LANE, 2 * _LANE)
    ]
    return np.stack(channels, axis=-1).reshape(image.shape)


def _packed(red: Any, green: Any = None, blue: Any = None) -> Any:
    """Three numbers (or arrays) in one, `_LANE` bits each; a single one three times."""
    green, blue = (red, red) if green is None else (green, blue)
    return red | green << _LANE | blue << 2 * _LANE


@lru_cache(maxsize=16)  # a run uses few sizes and, at a fixed level, few maps
def _sources(height: int, width: int, forward: tuple[float, ...]) -> tuple[Array, Array]:
    """For each target pixel the upper left of its four sources, and the weights of the four.

    Returns:
        corner [H*W] int64, positions in the flattened image with a frame of two pixels, where all
        sources outside the image are found; weights [4, H*W] uint16, adding up to 1024.
    """
    a, b, c, d, e, f = forward
    det = a * e - b * d
    ia, ib, id_, ie = e / det, -b / det, -d / det, a / det
    ic, if_ = -(ia * c + ib * f), -(id_ * c + ie * f)
    across, down = np.arange(width), np.arange(height)
    x = _fixed(ia * across)[None, :] + _fixed(ib * down + ic)[:, None]
    y = _fixed(id_ * across)[None, :] + _fixed(ie * down + if_)[:, None]
    shift = _POSITION_BITS - _FRACTION_BITS
    x = ((x + (1 << (shift - 1))) >> shift).ravel()
    y = ((y + (1 << (shift - 1))) >> shift).ravel()
    left, right_part = x >> _FRACTION_BITS, x & (_FRACTIONS - 1)
    top, lower_part = y >> _FRACTION_BITS, y & (_FRACTIONS - 1)
    corner = (np.clip(top, -2, height) + 2) * (width + 4) + np.clip(left, -2, width) + 2
    weights = [
        row * column
        for row in (_FRACTIONS - lower_part, lower_part)
        for column in (_FRACTIONS - right_part, right_part)
    ]
    return corner, np.stack(weights).astype(np.uint16)


def _fixed(values: Array) -> Array:
    return np.rint(values * (1 << _POSITION_BITS)).astype(np.int64)


# ------------------------------------------------------------------------------------------- table


def _factor(level: float) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


# name -> (image, level, sign) -> image. Level 5 leaves brightness and sharpness as they are.
OPS: dict[str, Callable[[Array, float, float], Array]] = {
    "Identity": lambda image, _level, _sign: image,
    "AutoContrast": lambda image, _level, _sign: autocontrast(image),
    "Brightness": lambda image, level, _sign: brightness(image, _factor(level)),
    "Sharpness": lambda image, level, _sign: sharpness(image, _factor(level)),
    "Equalize": lambda image, _level, _sign: equalize(image),
    "ShearX": lambda image, level, sign: shear_x(image, sign * level / MAX_LEVEL * 0.3),
    "ShearY": lambda image, level, sign: shear_y(image, sign * level / MAX_LEVEL * 0.3),
    "TranslateX": lambda image, level, sign: translate_x(image, sign * level / MAX_LEVEL * 10),
    "TranslateY": lambda image, level, sign: translate_y(image, sign * level / MAX_LEVEL * 10),
    "Rotate": lambda image, level, sign: rotate(image, sign * level / MAX_LEVEL * 30),
}
