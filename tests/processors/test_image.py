"""Image processors make LAVIS's numbers, from any picture, with draws that can be repeated."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavislite.common.errors import ConfigError
from lavislite.processors import build_processor
from lavislite.processors.image import CLIP_MEAN, CLIP_STD, random_crop, to_rgb

DATA = Path(__file__).parents[1] / "data" / "processors"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(width: int, height: int) -> Image.Image:
    return noise(8, 8).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("image", ["img0", "img1", "img2"])
@pytest.mark.parametrize("size", [32, 56])
def test_eval_is_the_originals_to_the_bit(image: str, size: int) -> None:
    reference = np.load(DATA / "image_eval.npz")
    process = build_processor({"name": "blip_image_eval", "image_size": size})
    ours = process(Image.fromarray(reference[image]))
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.numpy(), reference[f"{image}_size{size}"])


@pytest.mark.parametrize("name", ["blip2_image_train", "blip_image_train", "blip_image_eval"])
def test_every_mode_becomes_a_finite_square(name: str) -> None:
    process = build_processor({"name": name, "image_size": 24})
    for mode in ("RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F"):
        image = Image.new(mode, (31, 17)) if mode == "I;16" else noise(31, 17).convert(mode)
        result = process(image)
        assert result.shape == (3, 24, 24), mode
        assert result.isfinite().all(), mode
    for size in ((1, 1), (1, 300), (300, 1), (2, 3)):
        assert process(noise(*size)).shape == (3, 24, 24)


def test_statistics_are_public_and_used() -> None:
    process = build_processor(
        {"name": "blip_image_eval", "image_size": 2, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 1]}
    )
    assert (process.mean, process.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 1.0))
    white = process(Image.new("RGB", (4, 4), "white"))
    assert white[:, 0, 0].tolist() == [1.0, 1.0, 0.5]
    default = build_processor({"name": "blip_image_eval"})
    assert (default.mean, default.std, default.image_size) == (CLIP_MEAN, CLIP_STD, 224)


def test_transparent_is_white_and_deep_grey_is_not_cut_off() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert [to_rgb(grey).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_training_depends_on_torchs_random_state_alone() -> None:
    process = build_processor({"name": "blip_image_train", "image_size": 16})
    image = noise(40, 30)
    torch.manual_seed(3)
    first = [process(image) for _ in range(8)]
    np.random.seed(99)
    torch.manual_seed(3)
    again = [process(image) for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(a.flatten().tolist()) for a in first}) == 8


def test_crops_keep_their_bounds() -> None:
    boxes = [random_crop(60, 40, (0.5, 1.0)) for _ in range(300)]
    for left, top, width, height in boxes:
        assert 0 <= left <= 60 - width
        assert 0 <= top <= 40 - height
        assert 0.49 <= width * height / 2400 <= 1.0
        assert 0.72 <= width / height <= 1.38
    assert len(set(boxes)) > 200
    assert random_crop(100, 1, (0.5, 1.0)) == (49, 0, 1, 1)


def test_the_whole_picture_in_half_of_the_cases_mirrored() -> None:
    process = build_processor({"name": "blip2_image_train", "image_size": 8, "min_scale": 1.0})
    image = smooth(8, 8)  # aspect 1 and area 1 only fit as the whole picture
    plain = build_processor({"name": "blip_image_eval", "image_size": 8})(image)
    seen = [process(image) for _ in range(60)]
    same = sum(torch.equal(result, plain) for result in seen)
    mirrored = sum(torch.equal(result, plain.flip(2)) for result in seen)
    assert same > 10
    assert mirrored > 10


def test_reduced_decoding_changes_the_picture_little() -> None:
    full = smooth(800, 600)
    process = build_processor({"name": "blip2_image_train", "image_size": 64})
    for seed in range(5):
        lazy = jpeg(full)
        torch.manual_seed(seed)
        reduced = process(lazy)
        assert lazy.size[0] < 800  # the decoder did the first part of the shrinking
        torch.manual_seed(seed)
        exact = process(jpeg(full).convert("RGB"))
        assert (reduced - exact).abs().mean() < 0.05


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Coarse and fine structure, and noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 4, (height, width, 3))
    for grain, weight in ((4, 0.5), (30, 0.3), (120, 0.2)):
        field = noise(grain, grain, seed).resize((width, height), Image.Resampling.BICUBIC)
        pixels += weight * np.asarray(field)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [96, 224])
def test_large_crops_are_pillows_to_one_level_in_255(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a JPEG's quality setting, or another version of Pillow, changes."""
    process = build_processor({"name": "blip2_image_train", "image_size": side})
    deviation = []
    for seed, size in enumerate([(640, 480), (480, 640), (500, 333), (230, 200), (1024, 700)]):
        image, results = photo(*size, seed), []
        for vectors in (True, False):  # False: as on a processor without them
            monkeypatch.setattr("lavislite.processors.image._VECTORS", vectors)
            torch.manual_seed(seed)
            results.append(process(image) * torch.tensor(CLIP_STD).view(3, 1, 1) * 255)
        deviation.append((results[0] - results[1]).abs())
    assert max(float(d.max()) for d in deviation) < 1.5
    assert max(float((d > 0.5).float().mean()) for d in deviation) < 0.02


def test_small_crops_are_pillows_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    process = build_processor({"name": "blip_image_train", "image_size": 64})
    results = []
    for vectors in (True, False):
        monkeypatch.setattr("lavislite.processors.image._VECTORS", vectors)
        torch.manual_seed(5)
        results.append(process(photo(72, 64, 1)))
    assert torch.equal(*results)


def test_evaluation_never_decodes_reduced() -> None:
    lazy = jpeg(smooth(800, 600))
    process = build_processor({"name": "blip_image_eval", "image_size": 32})
    assert torch.equal(process(lazy), process(jpeg(smooth(800, 600)).convert("RGB")))
    assert lazy.size == (800, 600)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"name": "blip_image_evl"}, ["x.eval.name", "Did you mean 'blip_image_eval'?"]),
        ({"name": "blip_caption", "max_word": 3}, ["x.eval.max_word", "'max_words'", "prompt"]),
        ({"name": "blip_image_eval", "image_size": 0}, ["x.eval", "image_size", "saw 0"]),
        ({"name": "blip_image_eval", "mean": 0.5}, ["x.eval", "mean", "three numbers"]),
        ({"name": "blip_image_eval", "std": [1, 0, 1]}, ["std", "positive"]),
        ({"name": "blip2_image_train", "min_scale": 2}, ["min_scale"]),
        ({"name": "blip_caption", "max_words": 0}, ["max_words", "saw 0"]),
        ({"image_size": 3}, ["x.eval", "name"]),
    ],
)
def test_wrong_options_are_named(cfg: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_processor(cfg, "x.eval")
    assert all(word in str(error.value) for word in words), str(error.value)
