"""Flickr30k: pictures with five captions each, searched by text and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lavislite.common.catalog import datasets
from lavislite.common.errors import DataError
from lavislite.datasets.annotations import Record
from lavislite.datasets.image_text import ImageTextRetrievalBuilder
from lavislite.datasets.records import existing

ADVICE = (
    "They come from their authors: `lavislite download flickr30k` says how, and verifies them. "
    "Where you have them already, set `images:` to the folder that holds flickr30k-images."
)
_SPLITS = ("train", "val", "test")
_PICTURES = "flickr30k-images"


@datasets.register("flickr30k")
class Flickr30kBuilder(ImageTextRetrievalBuilder):
    """Captions to train on; in evaluation a gallery, whose captions can also be compared with.

    Reads LAVIS's lists, Karpathy's dataset_flickr30k.json (one file for all splits), and the
    official results_20130124.token together with a list of the split's pictures: a text file with
    the number or the name of one picture in each line.
    """

    advice = ADVICE
    looks_at_folder = True

    def _records(self, files: list[Path], split: str, beside: bool) -> Iterator[Record]:
        lists = [file for file in files if file.suffix.lower() == ".txt"]
        wanted = {name for file in lists for name in _picture_names(file)}
        captions = [file for file in files if file not in lists]
        for file in captions:
            if file.suffix.lower() == ".token" and split in _SPLITS and not lists:
                raise DataError(
                    f"{file}: holds the pictures of all splits. Name a list of those in '{split}' "
                    f"as well (datasets.{self.name}.annotations.{split}: [{file.name}, "
                    f"{split}.txt]), or use Karpathy's dataset_flickr30k.json."
                )
        folder = self._folder(split)
        inside = folder is not None and (folder / _PICTURES).is_dir()
        for record in super()._records(captions, split, beside):
            name = Path(record.image).name
            if wanted and name not in wanted:
                continue
            # The official names are bare, LAVIS's begin with the folder.
            image = f"{_PICTURES}/{name}" if inside and "/" not in record.image else record.image
            yield Record(image, record.captions, record.image_id)


def _picture_names(file: Path) -> Iterator[str]:
    for line in existing(file).read_text(encoding="utf-8-sig").split("\n"):
        if line.strip():
            yield line.strip() if "." in line else f"{line.strip()}.jpg"
