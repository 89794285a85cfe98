"""The pictures of a dataset on disk: opening them, and keeping count of those that cannot be."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageOps

from lavislite.common.errors import DataError
from lavislite.common.io import cache_dir
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean
from lavislite.datasets.packed import PackedStrings

logger = get_logger(__name__)

# What Pillow raises for files that are missing, cut short, or no pictures.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_NAMED = 10  # so many bad files are named in the log, the rest only counted
_LOOKED_AT = 1000  # so many files are looked for before any work starts
_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"  # up to some padding
TAIL = 64


class TooManyBadImages(DataError):
    """More files are missing or unreadable than `max_bad_fraction` allows."""


class ImageFiles:
    """Files by number, with a shared memory of which ones turned out bad.

    Args:
        names: paths, relative to `root` or absolute.
        root: folder of the pictures.
        owner: "<dataset>/<split>", for messages.
        max_bad_fraction: share of the files that may be bad before loading stops.
        advice: where to get the pictures, for messages.
    """

    def __init__(
        self,
        names: Sequence[str] | PackedStrings,
        root: str | Path,
        *,
        owner: str,
        max_bad_fraction: float = 0.01,
        advice: str = "",
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction: expected 0 to 1, saw {max_bad_fraction}")
        self.names = names if isinstance(names, PackedStrings) else PackedStrings(names)
        self.root = str(root)
        self.owner = owner
        self.max_bad_fraction = max_bad_fraction
        self.advice = advice
        # Shared between this process and its workers, so that the count is of all of them.
        self._bad = torch.zeros(len(self.names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, k: int) -> Path:
        return Path(self.root, self.names[k])

    def identity(self, k: int) -> tuple[str, str]:
        """What names file `k`, and what changes whenever the file does; "" if it is not there."""
        path = os.path.abspath(self.path(k))  # noqa: PTH100
        try:
            stat = os.stat(path)  # noqa: PTH116
        except OSError:
            return path, ""
        return path, f"{stat.st_size} {stat.st_mtime_ns}"

    def bring(self, k: int) -> None:
        """Begin to fetch file `k` if it is not on this machine. Here they all are."""

    def label(self, k: int) -> str:
        """What to call file `k` in messages."""
        return str(self.path(k))

    @property
    def n_bad(self) -> int:
        """How many different files were found bad so far, by this process and its workers."""
        return int(self._bad.sum())

    def bad_paths(self) -> list[Path]:
        return [self.path(k) for k in self._bad.nonzero().flatten().tolist()]

    def load(self, k: int, process: Callable[[Image.Image], Any]) -> Any | None:
        """`process` of picture `k`, or None (logged and counted) when it cannot be read.

        Raises:
            TooManyBadImages: this one exceeds `max_bad_fraction`.
        """
        if self._bad[k]:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about metadata that nobody reads here
                with Image.open(self._file(k)) as image:
                    return process(upright(image))
        except UNREADABLE as error:
            self._note({k: _reason(error)})
        except ValueError:
            problem = self._problem(k, decode=True)
            if problem is None:
                raise  # the picture is fine: it is the processor's mistake
            self._note({k: problem})
        return None

    def _note(self, problems: dict[int, str]) -> None:
        """Remember bad files; name them in the log, unless there were many before."""
        named = range(self.n_bad, _NAMED)
        self._bad[list(problems)] = 1
        for _, (k, reason) in zip(named, problems.items(), strict=False):
            logger.warning("%s: skipping %s: %s", self.owner, self.label(k), reason)
        if self.n_bad >= _NAMED and len(named):
            logger.warning("%s: further unreadable images are counted, not named", self.owner)
        self._check_tolerance(*next(iter(problems.items())))

    def _check_tolerance(self, k: int, reason: str) -> None:
        """Raise TooManyBadImages, with file `k` as the example, if that many are bad by now."""
        bad = self.n_bad
        if bad > self.max_bad_fraction * len(self):
            raise TooManyBadImages(self._too_many(bad, len(self), self.label(k), reason))

    def _too_many(self, bad: int, of: int, path: str, reason: str) -> str:
        return (
            f"{self.owner}: {bad} of {of} images are missing or unreadable, more than "
            f"max_bad_fraction: {self.max_bad_fraction} allows. For example {path}: {reason}."
            f"{self.advice}"
        )

    # ----------------------------------------------------------------------------- before any work

    def check(self) -> None:
        """Look for some of the files (all of a small set), so that a wrong folder is found now.

        Raises:
            DataError: the folder does not exist, or holds none of the files.
            TooManyBadImages: too many are missing.
        """
        if not len(self):
            return
        self._check_root()
        step = max(1, len(self) // _LOOKED_AT)
        looked_at = range(0, len(self), step)
        missing = [k for k in looked_at if not self.path(k).exists()]
        if not missing:
            return
        if len(missing) == len(looked_at):
            raise DataError(
                f"{self.owner}: none of the {len(looked_at)} images looked for exists. The first "
                f"one is {self.path(0)}.{self._hint()}{self.advice}"
            )
        # A sample may be unlucky; a large excess is not luck.
        allowed = self.max_bad_fraction * len(looked_at) * (1 if step == 1 else 2)
        if len(missing) > allowed:
            first = self.label(missing[0])
            message = self._too_many(len(missing), len(looked_at), first, "no such file")
            raise TooManyBadImages(message)
        logger.warning(
            "%s: %d of %d images looked for are missing, first: %s",
            *(self.owner, len(missing), len(looked_at), self.path(missing[0])),
        )

    def readable(self) -> list[int]:
        """The numbers of the files that exist and are whole pictures; the others are noted.

        Checksums (PNG) or a regular end (JPEG) will do, other files are decoded for it.

        Raises:
            TooManyBadImages: too many do not.
        """
        with ThreadPoolExecutor(8) as pool:
            problems = list(pool.map(self._problem, range(len(self))))
        if any(problems):
            self._note({k: problem for k, problem in enumerate(problems) if problem is not None})
        return [k for k, problem in enumerate(problems) if problem is None]

    def _problem(self, k: int, decode: bool = False) -> str | None:
        try:
            with Image.open(self._file(k)) as image:
                if not decode and image.format == "PNG":
                    image.verify()  # it reads the file to its end
                elif decode or not (image.format == "JPEG" and _JPEG_END in self._tail(k)):
                    image.load()
                return None
        except (*UNREADABLE, ValueError) as error:
            return _reason(error)

    def _file(self, k: int) -> str | BinaryIO:
        """What Pillow opens."""
        return os.path.join(self.root, self.names[k])  # noqa: PTH118

    def _tail(self, k: int) -> bytes:
        """The file's last bytes."""
        path = self.path(k)
        with path.open("rb") as file:
            file.seek(-min(TAIL, path.stat().st_size), os.SEEK_END)
            return file.read()

    def _check_root(self) -> None:
        root = Path(self.root)
        if root.is_dir() or Path(self.names[0]).is_absolute():
            return
        if root.exists():
            raise DataError(f"{self.owner}: images: {root} is a file; a folder is expected.")
        near = ""
        if root.parent.is_dir():
            near = did_you_mean(root.name, [p.name for p in root.parent.iterdir() if p.is_dir()])
        also = "" if root.is_absolute() else f" (neither here nor in {cache_dir()})"
        raise DataError(f"{self.owner}: images: no folder {root}{also}.{near}{self.advice}")

    def _hint(self) -> str:
        """Where the first file is instead, if that is easy to see."""
        name, root = Path(self.names[0]), Path(self.root)
        if name.is_absolute() or root == Path():
            return (
                " `images:` is not set, so names count from the annotation file's folder."
                if root == Path()
                else ""
            )
        for folder in (root.parent, *(root / part for part in _folders(root))):
            if (folder / name).exists():
                return f" {folder / name} does: set `images: {folder}`."
        if len(name.parts) > 1 and (root / name.name).exists():
            return (
                f" {root / name.name} does: the annotations put '{name.parent}/' before the name, "
                "the folder does not."
            )
        return " Check `images:` and the annotation file's image names."


def upright(image: Image.Image) -> Image.Image:
    """The picture as its camera's orientation tag says; without one, as it is (not decoded yet)."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except (SyntaxError, ValueError, TypeError, struct.error):  # a broken tag says nothing
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:50]


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that Pillow can read"
    return f"{type(error).__name__}: {error}"
