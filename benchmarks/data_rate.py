"""Pictures per second and core: our processors and loader against Pillow with torchvision's own.

    python benchmarks/data_rate.py                  # about a minute
    python benchmarks/data_rate.py --quick --json benchmarks/results/data_rate.json

Peer: ``Image.open(...).convert("RGB")``, then torchvision's RandomResizedCrop (bicubic),
RandomHorizontalFlip, perhaps RandAugment(2, 5), ToTensor and Normalize; for evaluation Resize
(bicubic) to the square. Ours: the same from file to tensor as a data set does it, with BLIP-2's
processors. The pictures are made up: photo-like, JPEG, 640 x 480 as in COCO (for 224 pixels) and
64 x 64 as in the playground. Loaders: 32 samples to a batch, made in this process.

The unit is CPU seconds of one core, so other jobs on the machine matter little. Sides take turns,
file by file; the ratio is the median over the rounds. The floor of a picture is its decoding by
Pillow, which both sides do; a faster decoder would be another picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the rate is that of one core

import numpy as np
import torch
from facts import command_line, facts, write_json
from PIL import Image

from lavislite.datasets.images import ImageFiles
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.samples import collate
from lavislite.processors.image import CLIP_MEAN, CLIP_STD, Blip2ImageTrain, BlipImageEval
from lavislite.processors.image import BlipImageTrain as BlipImageTrainAugmented
from lavislite.processors.randaugment import RandAugment

BATCH = 32
ROUNDS = (7, 25)  # quick, and in full
FEEDS = (250, 1000, 4000)  # images per second that a GPU may want
Work = Callable[[int], Any]


@dataclass
class Kind:
    """Pictures of one size, and what they become."""

    name: str
    width: int
    height: int
    side: int


KINDS = (Kind("COCO", 640, 480, 224), Kind("playground", 64, 64, 64))


def photo(kind: Kind, seed: int) -> Image.Image:
    """Smooth colour fields, finer and finer, and a little noise: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 4, (kind.height, kind.width, 3))
    for grain, weight in ((4, 0.45), (16, 0.2), (64, 0.2), (160, 0.15)):
        field = rng.integers(0, 256, (grain * 3 // 4, grain, 3), dtype=np.uint8)
        grown = Image.fromarray(field).resize((kind.width, kind.height), Image.Resampling.BICUBIC)
        pixels += weight * np.asarray(grown)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(folder: Path, kind: Kind, n: int) -> list[str]:
    names = [f"{kind.name}_{i}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        photo(kind, i).save(folder / name, quality=95)
    return names


# ---- the two sides


def torchvision_side(kind: Kind, *, train: bool, augment: bool) -> Any:
    from torchvision import transforms as T

    bicubic = T.InterpolationMode.BICUBIC
    if not train:
        parts: list[Any] = [T.Resize((kind.side, kind.side), bicubic)]
    else:
        crop = T.RandomResizedCrop(kind.side, scale=(0.5, 1.0), interpolation=bicubic)
        parts = [crop, T.RandomHorizontalFlip(), *([T.RandAugment(2, 5)] if augment else [])]
    return T.Compose([*parts, T.ToTensor(), T.Normalize(CLIP_MEAN, CLIP_STD)])


def our_side(kind: Kind, *, train: bool, augment: bool) -> Any:
    if not train:
        return BlipImageEval(image_size=kind.side)
    return (BlipImageTrainAugmented if augment else Blip2ImageTrain)(image_size=kind.side)


class Ours:
    """A data set of ours over the files."""

    name = "ours"

    def __init__(self, folder: Path, names: Sequence[str], process: Any) -> None:
        self.files, self.process = ImageFiles(names, folder, owner="benchmark"), process

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> dict[str, Any] | None:
        image = self.files.load(k, self.process)
        return None if image is None else {"image": image, "index": k}

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        return collate(samples, self.name)

    def record_id(self, k: int) -> str:
        return str(self.files.path(k))


class Theirs(torch.utils.data.Dataset):
    """As most people would write it."""

    def __init__(self, folder: Path, names: Sequence[str], process: Any) -> None:
        self.paths, self.process = [folder / name for name in names], process

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> dict[str, Any]:
        with Image.open(self.paths[k]) as image:
            return {"image": self.process(image.convert("RGB")), "index": k}


# ---- measuring


def side_by_side(peer: Work, ours: Work, n: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU per item on both sides, and how many times as fast ours is."""
    seconds: list[tuple[float, float]] = []
    for k in range(min(n, 3)):
        peer(k), ours(k)
    for _ in range(rounds):
        spent = [0.0, 0.0]
        for k in range(n):
            for side, work in enumerate((peer, ours)):
                start = time.process_time()
                work(k)
                spent[side] += time.process_time() - start
        seconds.append((spent[0] / n, spent[1] / n))
    return {
        "peer_us": round(statistics.median(s[0] for s in seconds) * 1e6, 1),
        "ours_us": round(statistics.median(s[1] for s in seconds) * 1e6, 1),
        "ratio": round(statistics.median(s[0] / s[1] for s in seconds), 2),
    }


def decoding(folder: Path, names: Sequence[str], rounds: int) -> float:
    """Microseconds of CPU in which Pillow opens and decodes a file, in full."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for name in names:
            with Image.open(folder / name) as image:
                image.load()
        found.append((time.process_time() - start) / len(names))
    return round(statistics.median(found) * 1e6, 1)


def pictures(kind: Kind, folder: Path, names: list[str], rounds: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for what, train, augment in (
        ("train", True, False),
        ("train + RandAugment", True, True),
        ("eval", False, False),
    ):
        theirs = Theirs(folder, names, torchvision_side(kind, train=train, augment=augment))
        ours = Ours(folder, names, our_side(kind, train=train, augment=augment))
        rows[what] = side_by_side(theirs.__getitem__, ours.__getitem__, len(names), rounds)
    rows["RandAugment alone"] = randaugment(kind, 4 * len(names), rounds)
    rows["loader"] = loaders(kind, folder, names, rounds)
    floor = decoding(folder, names, rounds)
    return {"decoding_us": floor, **rows}


def randaugment(kind: Kind, n: int, rounds: int) -> dict[str, float]:
    from torchvision import transforms as T

    square = Kind("square", kind.side, kind.side, kind.side)
    image, peer, ours = photo(square, 0), T.RandAugment(2, 5), RandAugment(2, 5)
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).transpose(1, 2, 0)
    return side_by_side(lambda _: peer(image), lambda _: ours(pixels), n, rounds)


def loaders(kind: Kind, folder: Path, names: list[str], rounds: int) -> dict[str, float]:
    """Whole batches without workers, by picture: what the loaders themselves cost is in it."""
    peer_set = Theirs(folder, names, torchvision_side(kind, train=True, augment=False))
    ours = Ours(folder, names, our_side(kind, train=True, augment=False))
    endless = torch.utils.data.RandomSampler(peer_set, replacement=True, num_samples=10**9)
    theirs = iter(torch.utils.data.DataLoader(peer_set, batch_size=BATCH, sampler=endless))
    batches = TrainLoader([ours], batch_size=BATCH, pin_memory=False).batches(0, 10**6)
    found = side_by_side(lambda _: next(theirs), lambda _: next(batches), 1, rounds)
    per_picture = {key: round(found[key] / BATCH, 1) for key in ("peer_us", "ours_us")}
    return {**per_picture, "ratio": found["ratio"]}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, rounds = (BATCH, ROUNDS[0]) if args.quick else (2 * BATCH, ROUNDS[1])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for kind in KINDS:
            found[kind.name] = pictures(kind, folder, write(folder, kind, n), rounds)
            cost = found[kind.name]["loader"]["ours_us"]
            feeds = sorted({*FEEDS, args.rate} - {None})
            cores = {str(rate): round(rate * cost / 1e6, 2) for rate in feeds}
            found[kind.name]["loader_cores_for_images_per_second"] = cores
    return {**found, **facts(1)}


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':32}{'peer us':>10}{'ours us':>10}{'ratio':>8}{'images/s/core':>16}"]
    for kind in KINDS:
        rows = found[kind.name]
        floor = rows["decoding_us"]
        lines.append(f"{kind.name + ', decoding (floor)':32}{floor:10.0f}{floor:10.0f}")
        for what, row in rows.items():
            if isinstance(row, dict) and "ratio" in row:
                rate = "" if "alone" in what else f"{1e6 / row['ours_us']:16.0f}"
                lines.append(
                    f"{kind.name + ', ' + what:32}{row['peer_us']:10.0f}{row['ours_us']:10.0f}"
                    f"{row['ratio']:8.2f}{rate}"
                )
        cores = rows["loader_cores_for_images_per_second"]
        feeds = ", ".join(f"{n:.1f} for {rate}" for rate, n in cores.items())
        lines.append(f"{kind.name}: loader cores that feed so many images/s: {feeds}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, quick="fewer pictures and rounds", threads=None)
    parser.add_argument("--rate", type=float, help="how many loader cores feed so many images/s")
    args = parser.parse_args(argv)
    found = measure(args)
    print(table(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
