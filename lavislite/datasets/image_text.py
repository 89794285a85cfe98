"""Pictures and texts that find each other: captions for training, a gallery for evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lavislite.common.catalog import datasets
from lavislite.datasets.base import Dataset, DatasetBuilder, Processor, fetched_by
from lavislite.datasets.caption import Pictures, build_captions
from lavislite.datasets.images import ImageFiles
from lavislite.datasets.samples import Sample
from lavislite.datasets.tables import ImageTable


class RetrievalDataset(Dataset):
    """One sample per picture, ``{"image": [3, S, S], "index": int}``, and all texts beside them.

    A picture may have any number of captions.

    Attributes:
        texts: all captions, processed.
        image_to_texts: for each picture the positions of its captions in `texts`.
        text_to_image: for each caption its picture.
        image_ids, image_paths: one per picture.
    """

    evaluation = "retrieval"

    def __init__(
        self,
        name: str,
        split: str,
        *,
        table: ImageTable,
        files: ImageFiles,
        vis_processor: Processor,
        text_processor: Processor,
        keep: Iterable[int] | None = None,
    ) -> None:
        super().__init__(name, split, files=files, vis_processor=vis_processor)
        self.table = table
        self._files = list(range(len(table)) if keep is None else keep)
        self.texts: list[str] = []
        self.image_to_texts: list[list[int]] = []
        self.text_to_image: list[int] = []
        for image, k in enumerate(self._files):
            captions = [text_processor(table.texts[t]) for t in table.text_numbers(k)]
            self.image_to_texts.append(
                list(range(len(self.texts), len(self.texts) + len(captions)))
            )
            self.texts += captions
            self.text_to_image += [image] * len(captions)
        self.image_ids = [table.ids[k] for k in self._files]
        self.image_paths: list[Path] = [files.path(k) for k in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample | None:
        image = self.load_image(index)
        return None if image is None else {"image": image, "index": int(index)}

    def file_number(self, index: int) -> int:
        return self._files[index]

    def captions(self) -> Iterable[str]:
        return self.texts

    def pictures(self) -> Pictures:
        """The same pictures, for writing captions."""
        return Pictures(self, self._files)


@datasets.register("image_text_retrieval")
class ImageTextRetrievalBuilder(DatasetBuilder):
    """Your own pictures with captions, evaluated by retrieval."""

    def build(self, split: str, *, train: bool) -> Dataset:
        """Captions (as `image_caption` has them) to train on, else the gallery."""
        if train:
            return build_captions(self, split, train=True)
        vis, text = self.vis_processor(train=False), self.text_processor(train=False)
        table, files = self.pictures(split)
        return RetrievalDataset(
            self.name,
            split,
            table=table,
            files=files,
            vis_processor=vis,
            text_processor=text,
            keep=files.readable(),
        )


@datasets.register("coco_retrieval")
class CocoRetrievalBuilder(ImageTextRetrievalBuilder):
    """COCO captions in Karpathy's splits; the annotations are downloaded."""

    advice = fetched_by("coco_retrieval")
