"""RandAugment as BLIP uses it: [H, W, 3] uint8 arrays in and out, no OpenCV.

The geometric operations repeat OpenCV's fixed-point bilinear arithmetic (positions to 1/32 pixel),
so that the pixels are the original's. Draws come from torch's random state. Nothing loops over
pixels or channels; results may have their channels one after the other in memory.
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
_CHANNEL_STARTS = np.array([[0], [_LANE], [2 * _LANE]], np.uint64) + np.uint64(2 * _FRACTION_BITS)
_SAME = np.arange(256, dtype=np.uint8)  # the table that changes nothing


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


# --------------------------------------------------------------------------------- lookup tables


def autocontrast(image: Array) -> Array:
    """Each channel stretched to the full range 0..255."""
    planes = _planes(image)
    low, high = planes.min(1, keepdims=True), planes.max(1, keepdims=True)
    width = high.astype(np.int64) - low
    scale = 255 / np.maximum(width, 1)
    stretched = _byte(np.arange(256) * scale - low * scale)
    return _looked_up(image, planes, np.where(width > 0, stretched, _SAME))


def equalize(image: Array) -> Array:
    """Each channel with a histogram as flat as it gets."""
    planes = _planes(image)
    counts = np.bincount(_entries(planes).ravel(), minlength=3 * 256).reshape(3, 256)
    brightest = np.take_along_axis(counts, planes.max(1, keepdims=True).astype(np.int64), 1)
    step = (planes.shape[1] - brightest) // 255
    below = np.cumsum(counts, axis=1) - counts
    flat = _byte((step // 2 + below) // np.maximum(step, 1))
    return _looked_up(image, planes, np.where(step > 0, flat, _SAME))


def _planes(image: Array) -> Array:
    """[H, W, 3] -> [3, H * W]; a copy, unless the channels lie one after the other already."""
    return np.ascontiguousarray(np.moveaxis(image, -1, 0)).reshape(3, -1)


def _entries(planes: Array) -> Array:
    """Where the values of the three channels stand in a table [3, 256]."""
    return planes + np.array([[0], [256], [512]], np.uint16)


def _looked_up(image: Array, planes: Array, table: Array) -> Array:
    """`image`, whose channels are `planes`, with its values replaced by those of a table [3, 256].

    One gather for all channels; they come out one after the other in memory.
    """
    found = table.ravel().take(_entries(planes), mode="clip")  # other modes check every index
    return np.moveaxis(found.reshape(3, *image.shape[:2]), 0, -1)


def _byte(values: Array) -> Array:
    return np.clip(values, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------ brightness


def brightness(image: Array, factor: float) -> Array:
    """Values times `factor`."""
    if factor == 1.0:
        return image
    return _byte(np.arange(256, dtype=np.float32) * np.float32(factor)).take(image, mode="clip")


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
    a, b, c, d, e, f = forward
    if (a, b, d, e) == (1.0, 0.0, 0.0, 1.0) and c == int(c) and f == int(f):
        return _shifted(image, int(c), int(f))
    height, width, _ = image.shape
    corner, parts = _sources(height, width, forward)
    # The three channels side by side in one number: one gather and one product do for all.
    framed = np.full((height + 4, width + 4), _packed(FILL), dtype=np.uint64)
    framed[2:-2, 2:-2] = _packed(*np.moveaxis(image, -1, 0).astype(np.uint64))
    pixels = framed.ravel()
    total = np.full(height * width, _packed(_FRACTIONS**2 // 2), dtype=np.uint64)
    part = np.empty_like(total)
    for offset, weight in parts:
        pixels[offset:].take(corner, out=part, mode="clip")  # other modes check every index
        part *= weight
        total += part
    channels = (total >> _CHANNEL_STARTS).astype(np.uint8)
    return np.moveaxis(channels.reshape(3, height, width), 0, -1)


def _shifted(image: Array, right: int, down: int) -> Array:
    """`image` moved by whole pixels: nothing to interpolate."""
    result = np.full_like(image, FILL)
    rows, columns = _overlap(image.shape[0], down), _overlap(image.shape[1], right)
    result[rows[0], columns[0]] = image[rows[1], columns[1]]
    return result


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """The places that receive something when `size` places are shifted, and where it is from."""
    first, last = max(shift, 0), max(size + min(shift, 0), 0)
    return slice(first, last), slice(max(first - shift, 0), max(last - shift, 0))


def _packed(red: Any, green: Any = None, blue: Any = None) -> Any:
    """Three numbers (or arrays) in one, `_LANE` bits each; a single one three times."""
    green, blue = (red, red) if green is None else (green, blue)
    return red | green << _LANE | blue << 2 * _LANE


@lru_cache(maxsize=8)  # a run uses few sizes and, at a fixed level, six maps
def _sources(
    height: int, width: int, forward: tuple[float, ...]
) -> tuple[Array, list[tuple[int, Array]]]:
    """For each target pixel the upper left of its four sources, and the weights of the four.

    Returns:
        corner [H*W] int64, positions in the flattened image with a frame of two pixels, where all
        sources outside the image are found; and of each of the four that counts anywhere (shears
        need two) its distance from the corner and its weights [H*W], which add up to 1024.
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
    distances = (0, 1, width + 4, width + 5)
    parts = zip(distances, (weight.astype(np.uint64) for weight in weights), strict=True)
    return corner, [(distance, weight) for distance, weight in parts if weight.any()]


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
