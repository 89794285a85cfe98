"""NoCaps: pictures of things that COCO does and does not show, ten captions each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavislite.common.catalog import datasets
from lavislite.common.errors import DataError
from lavislite.common.io import read_json
from lavislite.datasets.annotations import Record, existing
from lavislite.datasets.base import DatasetConfig, fetched_by
from lavislite.datasets.caption import CaptionDataset, ImageCaptionBuilder, ImageCaptionConfig
from lavislite.datasets.recognise import looks_like


@dataclass
class NoCapsConfig(ImageCaptionConfig):
    """Options of `nocaps`. It is made for evaluating captions."""

    evaluation: str = "caption"


@dataclass(frozen=True)
class NoCapsImage:
    """One picture; `captions` is empty in the test split, `domain` None where it is not told."""

    image_id: str
    file_name: str
    captions: list[str]
    domain: str | None


def read_nocaps(file: Path) -> list[NoCapsImage]:
    """The pictures of an official file, or of LAVIS's list of ``image`` and ``img_id``.

    Raises:
        DataError: missing or malformed file; names the entry.
    """
    content = read_json(existing(file))
    if isinstance(content, Mapping) and isinstance(content.get("images"), list):
        images, annotations = content["images"], content.get("annotations") or []
    elif isinstance(content, list):
        images, annotations = content, []
    else:
        raise DataError(
            f"{file}: expected the official NoCaps file, an object with `images` and `annotations`."
            f"{looks_like(content)}"
        )
    if not images:
        raise DataError(f"{file}: holds no images.")
    captions: dict[str, list[str]] = {}
    for n, image in enumerate(images, start=1):
        captions.setdefault(_field(file, f"image {n}", image, "id", "img_id", "image_id"), [])
    for n, annotation in enumerate(annotations, start=1):
        where = f"annotation {n}"
        image_id = _field(file, where, annotation, "image_id")
        if image_id not in captions:
            raise DataError(f"{file}, {where}: image_id {image_id} is not in `images`.")
        captions[image_id].append(_field(file, where, annotation, "caption"))
    return [_image(file, f"image {n}", image, captions) for n, image in enumerate(images, start=1)]


def _image(file: Path, where: str, image: Any, captions: Mapping[str, list[str]]) -> NoCapsImage:
    image_id = _field(file, where, image, "id", "img_id", "image_id")
    name = _field(file, where, image, "file_name", "image")
    domain = image.get("domain")
    return NoCapsImage(image_id, name, captions[image_id], None if domain is None else str(domain))


def _field(file: Path, where: str, entry: Any, *names: str) -> str:
    """The first of `names` that `entry` has, as text."""
    for name in names:
        value = entry.get(name) if isinstance(entry, Mapping) else None
        if isinstance(value, (str, int)) and str(value).strip():
            return str(value)
    seen = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)[:60]
    raise DataError(f"{file}, {where}: expected `{names[0]}`, saw {seen}.")


@datasets.register("nocaps")
class NoCapsBuilder(ImageCaptionBuilder):
    """The official files; captions are scored over all pictures and in each domain."""

    Config: ClassVar[type[DatasetConfig]] = NoCapsConfig
    advice = fetched_by("nocaps")
    looks_at_folder = True

    def build(self, split: str, *, train: bool) -> CaptionDataset:
        dataset = super().build(split, train=train)
        if train and not len(dataset.table.texts):
            raise DataError(f"{self.name}/{split} has no captions: it cannot be trained on.")
        images = [
            image for source in self._sources(split) for image in read_nocaps(source.locate())
        ]
        dataset.domains = {i.image_id: i.domain for i in images if i.domain is not None}
        return dataset

    def _records(self, files: list[Path], split: str, beside: bool) -> Iterator[Record]:
        for file in files:
            images = read_nocaps(file)
            folder = file.parent if beside else self._folder(split) or Path()
            prefix = f"{split}/"
            # LAVIS's lists may say val/<name> for a picture that lies in the split's own folder.
            extra = (
                images[0].file_name.startswith(prefix)
                and not (folder / images[0].file_name).exists()
            )
            for image in images:
                name = image.file_name.removeprefix(prefix) if extra else image.file_name
                path = str(folder / name) if beside else name
                yield Record(path, image.captions, image.image_id)
