"""Captions in the layouts in which the data sets were released."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lavislite.common.errors import DataError
from lavislite.common.registry import did_you_mean
from lavislite.datasets.json_stream import Entry
from lavislite.datasets.recognise import looks_like
from lavislite.datasets.records import Record, checked, listed, short


def is_karpathy(content: Any) -> bool:
    """Whether it is one of Karpathy's dataset_*.json."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and bool(content["images"])
        and isinstance(content["images"][0], dict)
        and {"sentences", "filename"} <= content["images"][0].keys()
    )


def karpathy(file: Path, content: Mapping[str, Any], split: str) -> Iterator[Record]:
    """The pictures of `split`; "train" takes "restval" as well."""
    wanted = {"train", "restval"} if split == "train" else {split}
    known = {str(image.get("split")) for image in content["images"]}
    if not wanted & known:
        raise DataError(
            f"{file}: has no split '{split}'.{did_you_mean(split, known)} It has: {listed(known)}."
        )
    for n, image in enumerate(content["images"], start=1):
        if image.get("split") not in wanted:
            continue
        try:
            captions = [sentence["raw"] for sentence in image["sentences"]]
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, image {n}: incomplete record: {error!r}.") from error
        image_id = image.get("cocoid", image.get("imgid"))
        yield checked(file, f"image {n}", name, captions, image_id)


def coco(file: Path, content: Mapping[str, Any]) -> Iterator[Record]:
    """Pictures in the order of `images`; those without a caption are left out."""
    try:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        names = {image["id"]: image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{file}: images need `id` and `file_name`: {error!r}.{looks_like(content)}"
        ) from error
    for n, annotation in enumerate(content["annotations"], start=1):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= annotation.keys():
            seen = listed(annotation) if isinstance(annotation, dict) else short(annotation)
            raise DataError(
                f"{file}, annotation {n}: expected `image_id` and `caption`, saw {seen}."
                f"{looks_like(content)}"
            )
        if annotation["image_id"] not in captions:
            raise DataError(
                f"{file}, annotation {n}: image_id {annotation['image_id']!r} is not in `images`."
            )
        captions[annotation["image_id"]].append(annotation["caption"])
    for image_id, texts in captions.items():
        if texts:
            yield checked(file, f"image id {image_id}", names[image_id], texts, image_id)


def regions(items: Iterable[Entry], file: Path) -> Iterator[Record]:
    """Visual Genome's region descriptions: the phrases of each picture, "image/<id>.jpg".

    Blank phrases and pictures without any are left out.
    """
    for _, n, image in items:
        try:
            image_id = image["image_id"] if "image_id" in image else image["id"]
            phrases = [region["phrase"] for region in image["regions"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, image {n}: incomplete record: {error!r}.") from error
        kept = [phrase for phrase in phrases if not isinstance(phrase, str) or phrase.strip()]
        if kept:
            yield checked(file, f"image {n}", f"image/{image_id}.jpg", kept, image_id)


def tokens(file: Path) -> Iterator[Record]:
    """Flickr30k's results_*.token: ``name.jpg#0<TAB>caption``, one caption to a line."""
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        try:
            for n, line in enumerate(lines, start=1):
                name, tab, caption = line.rstrip("\r\n").partition("\t")
                image, mark, _ = name.rpartition("#")
                if not (tab and mark):
                    raise DataError(
                        f"{file}, line {n}: expected `name.jpg#0<TAB>caption`, saw {short(line)}."
                    )
                yield checked(file, f"line {n}", image, caption, None)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text: {error}") from error
