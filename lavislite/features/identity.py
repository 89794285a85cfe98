"""What a stored feature depends on: the picture, the processor, the tower."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavislite.common.errors import ConfigError

_TRIED = 8  # seeds under which a processor is tried
_NOT_ABOUT_OUTPUT = {"weights", "freeze", "grad_checkpointing", "drop_path_rate"}


def number(*words: object) -> int:
    """A 64-bit number for these words, never 0."""
    text = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") or 1


def digest(facts: Mapping[str, Any]) -> str:
    """Twenty hexadecimal digits for `facts`."""
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=10).hexdigest()


# ---------------------------------------------------------------------------------------- pictures


def of_pictures(files: Any) -> np.ndarray:
    """uint64 [2, n]: name and stamp of each of `files`; the stamp is 0 where there is no such file.

    The name stays when the file changes, the stamp does not.
    """
    with ThreadPoolExecutor(8) as pool:  # to ask a file server takes long, and costs nothing here
        known = pool.map(partial(_of_picture, files), range(len(files)), chunksize=256)
        return np.array(list(known), np.uint64).reshape(-1, 2).T


def _of_picture(files: Any, k: int) -> tuple[int, int]:
    name, version = files.identity(k)
    return number(name), number(name, version) if version else 0


# --------------------------------------------------------------------------------------- processor


def seeded(seed: int, process: Callable[[Any], Any], item: Any) -> Any:
    """`process` of `item`, with whatever it draws a function of `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)  # not torch's own: the GPU is the model's
    return process(item)


def of_processor(processor: Any, where: str) -> tuple[dict[str, Any], bool, Tensor]:
    """What tells `processor` from others, whether it draws at random, and what it makes, [3, H, W].

    Class and options are there to be read; what counts as well is what it makes of a picture.

    Raises:
        ConfigError: it makes something else than a tensor [3, H, W]; `where` names it.
    """
    picture = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    made = [seeded(seed, processor, Image.fromarray(picture)) for seed in range(_TRIED)]
    if not isinstance(made[0], Tensor) or made[0].ndim != 3:
        shape = list(made[0].shape) if isinstance(made[0], Tensor) else type(made[0]).__name__
        raise ConfigError(
            f"{where}: run.feature_cache needs a processor that makes a tensor [3, H, W]; it made "
            f"{shape}."
        )
    pixels = blake2b(digest_size=8)
    for image in made:
        pixels.update(image.contiguous().numpy().tobytes())
    options = {k: v for k, v in vars(processor).items() if not k.startswith("_") and _plain(v)}
    facts = {
        "class": f"{type(processor).__module__}.{type(processor).__qualname__}",
        **options,
        "pixels": pixels.hexdigest(),
    }
    return facts, any(not torch.equal(image, made[0]) for image in made[1:]), made[0]


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)


# ------------------------------------------------------------------------------------------- tower


def of_tower(model: Any, vision: Any) -> dict[str, Any]:
    """Name, weights (by `fingerprint`), arithmetic and options of the model's tower.

    Args:
        vision: its options, a dataclass.
    """
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.visual_encoder.parameters()}
    options = {k: v for k, v in asdict(vision).items() if k not in _NOT_ABOUT_OUTPUT}
    return {"tower": model.identity()["vision"], "arithmetic": sorted(kinds), **options}
