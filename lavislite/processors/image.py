"""Image processors: a picture of any size and mode to a normalised [3, S, S] float tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lavislite.common.catalog import processors
from lavislite.processors.randaugment import RandAugment

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
_WORTH_TORCH = 128 * 128  # pixels
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # 16 bits per pixel


class _ImageProcessor:
    """What all share: the size, the statistics, and the way from pixels to a tensor.

    Args of every image processor:
        image_size: side of the square result.
        mean, std: three numbers each, for values in 0..1; None means CLIP's.
    """

    def __init__(
        self, image_size: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: expected a positive whole number, saw {image_size!r}")
        self.image_size = image_size
        self.mean = _three("mean", CLIP_MEAN if mean is None else mean)
        self.std = _three("std", CLIP_STD if std is None else std)
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, saw {list(self.std)}")
        self._mean = torch.tensor(self.mean).view(3, 1, 1)
        self._std = torch.tensor(self.std).view(3, 1, 1)

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 to normalised [3, H, W] float32."""
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return image.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


@processors.register("blip_image_eval")
class BlipImageEval(_ImageProcessor):
    """The whole picture, squeezed to a square with bicubic interpolation, then normalised."""

    def __init__(
        self,
        *,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(image_size, mean, std)

    def __call__(self, item: Image.Image) -> Tensor:
        side = (self.image_size, self.image_size)
        return self._tensor(np.asarray(to_rgb(item).resize(side, Image.Resampling.BICUBIC)))


@processors.register("blip2_image_train")
class Blip2ImageTrain(_ImageProcessor):
    """A random crop, bicubically resized to a square, mirrored half of the time, normalised.

    Args:
        min_scale, max_scale: bounds of the crop's share of the area (sides 3:4 to 4:3).
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
    ) -> None:
        super().__init__(image_size, mean, std)
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(
                f"expected 0 < min_scale <= max_scale <= 1, saw {min_scale} and {max_scale}"
            )
        self.min_scale = min_scale
        self.max_scale = max_scale

    def __call__(self, item: Image.Image) -> Tensor:
        return self._tensor(self._crop(item))

    def _crop(self, item: Image.Image) -> np.ndarray:
        """[S, S, 3] uint8: a random crop, perhaps mirrored. Draws from torch's random state."""
        left, top, width, height = random_crop(*item.size, (self.min_scale, self.max_scale))
        full = item.size
        _draft(item, self.image_size / width, self.image_size / height)
        shrunk_x, shrunk_y = item.size[0] / full[0], item.size[1] / full[1]
        box = (
            round(left * shrunk_x),
            round(top * shrunk_y),
            max(round((left + width) * shrunk_x), round(left * shrunk_x) + 1),
            max(round((top + height) * shrunk_y), round(top * shrunk_y) + 1),
        )
        crop = to_rgb(item).crop(box)
        return _squared(crop, self.image_size, mirror=torch.rand(1).item() < 0.5)


@processors.register("blip_image_train")
class BlipImageTrain(Blip2ImageTrain):
    """`Blip2ImageTrain` followed by RandAugment(2, 5), before the normalisation."""

    augment = RandAugment(2, 5)

    def __call__(self, item: Image.Image) -> Tensor:
        return self._tensor(self.augment(self._crop(item)))


def random_crop(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop with a random area and an aspect of 3:4 to 4:3.

    The area is uniform within `scale` times the picture's, the aspect uniform in its logarithm;
    ten tries, then the largest centred crop (Inception's crop, as torchvision draws it).
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * _uniform(*scale)
        aspect = math.exp(_uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _below(width - w + 1), _below(height - h + 1), w, h
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


def _squared(crop: Image.Image, side: int, mirror: bool) -> np.ndarray:
    """`crop` (RGB) resized to [side, side, 3] uint8 with bicubic interpolation, perhaps mirrored.

    Large crops are resized by torch where it has a kernel for the processor's vectors: several
    times as fast as Pillow, with now and then a value that differs by one. It rounds the weights
    more coarsely, and Pillow's versions differ in which direction comes first.
    """
    if crop.width * crop.height < _WORTH_TORCH or not _VECTORS:
        crop = crop.resize((side, side), Image.Resampling.BICUBIC)
        if mirror:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(crop)
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0].contiguous()
    return (resized.flip(2) if mirror else resized).permute(1, 2, 0).numpy()


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in three 8-bit channels.

    Transparent pixels are laid on white (their hidden colour is often black); 16-bit grey is scaled
    down, where Pillow's own conversion would cut everything above 255 to white.
    """
    if image.mode == "RGB":
        return image if "transparency" not in image.info else _on_white(image)
    if image.mode in _DEEP_GREY:
        values = np.asarray(image).astype(np.int64)
        deep = values.max(initial=0) > 255
        return Image.fromarray((values >> 8 if deep else values).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _draft(image: Image.Image, x_scale: float, y_scale: float) -> None:
    """Let a JPEG that was not read yet be decoded smaller, where it will be shrunk anyway.

    The decoder can halve (or quarter, ...) a picture for free; it keeps the scales given at least.
    """
    if image.format == "JPEG" and max(x_scale, y_scale) <= 0.5:
        wanted = (math.ceil(image.size[0] * x_scale), math.ceil(image.size[1] * y_scale))
        image.draft("RGB", wanted)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(1).item()


def _below(n: int) -> int:
    return int(torch.randint(n, (1,)).item())


def _three(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, (str, float, int)) or len(values) != 3:
        raise ValueError(f"{name}: expected three numbers, saw {values!r}")
    r, g, b = (float(value) for value in values)
    return r, g, b
