"""One annotated picture, checked; and words for messages about those that are wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavislite.common.errors import DataError
from lavislite.common.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated picture.

    Attributes:
        image: file name as the annotations have it.
        captions: one or more.
        image_id: None when the annotations have no id.
    """

    image: str
    captions: list[str]
    image_id: str | None = None


def existing(path: Path) -> Path:
    """`path`, which must be a file.

    Raises:
        DataError: it is not; the nearest name in its folder is offered.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path} is a folder; an annotation file is expected.")
    if not path.parent.is_dir():
        raise DataError(f"No annotation file {path}: the folder {path.parent} does not exist.")
    near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    raise DataError(f"No annotation file {path}.{near}")


def checked(file: Path, where: str, image: Any, caption: Any, image_id: Any) -> Record:
    """The record of a file's fields.

    Raises:
        DataError: one of them is not what it should be; names `file` and `where`.
    """
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{file}, {where}: image: expected a file name, saw {short(image)}.")
    if not isinstance(captions, list) or not captions:
        raise DataError(
            f"{file}, {where}: caption: expected a string or a list of them, saw {short(caption)}."
        )
    for text in captions:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{file}, {where}: caption: expected some text, saw {short(text)}.")
    if isinstance(image_id, (dict, list)):
        raise DataError(
            f"{file}, {where}: image_id: expected a number or a string, saw {short(image_id)}."
        )
    return Record(image, captions, None if image_id is None or image_id == "" else str(image_id))


def listed(names: Iterable[Any]) -> str:
    """The first dozen, sorted, in one line."""
    shown = sorted(map(str, names))
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") or "(none)"


def short(value: Any) -> str:
    """`repr` that fits into a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
