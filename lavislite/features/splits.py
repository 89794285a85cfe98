"""A training split that gives stored features instead of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavislite.common.errors import ConfigError, DataError
from lavislite.features.store import FeatureStore

IMAGE, FEATURES = "image", "image_features"  # a picture in a batch, and what stands in its place


class CachedSplit(torch.utils.data.Dataset):
    """`source` itself until `use`; from then on its batches hold ``image_features`` [B, T, C].

    Args:
        source: a map-style dataset that reads its pictures by `load_image` from `files`, as those
            of `lavislite.datasets.base` do.

    Raises:
        ConfigError: it does not.
    """

    def __init__(self, source: Any) -> None:
        needed = ("load_image", "file_number", "vis_processor")
        files = getattr(source, "files", None)
        if not all(hasattr(source, name) for name in needed) or not hasattr(files, "identity"):
            raise ConfigError(
                f"run.feature_cache: the pictures of datasets.{source.name} cannot be stored: "
                f"{type(source).__name__} does not read them by `load_image` from `files`, as "
                "lavislite.datasets.base.Dataset does. Leave the option out."
            )
        self.source = source
        self._store: FeatureStore | None = None
        self._rows = np.empty(0, np.int64)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet: a copy that is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def use(self, store: FeatureStore, rows: np.ndarray) -> None:
        """Read from `store` what `files` number k shows: its row ``rows[k]``, -1: it has none."""
        self._store, self._rows = store, rows
        self.source.load_image = self._features

    def _features(self, index: int) -> Tensor | None:
        """One of the views of sample `index`; None if its picture cannot be read."""
        assert self._store is not None
        row = int(self._rows[self.source.file_number(index)])
        if row < 0:
            return None
        views = self._store.views
        # With a single view nothing is drawn: captions and answers are those of an uncached run.
        view = int(torch.randint(views, (1,))) if views > 1 else 0
        return self._store.read(row, view)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        sample: dict[str, Any] | None = self.source[index]
        if self._store is not None and sample is not None and sample[IMAGE].ndim != 2:
            raise DataError(
                f"run.feature_cache: {self.source.record_id(index)} was read past the cache: "
                f"{type(self.source).__name__} does not use `load_image`. Leave the option out."
            )
        return sample

    def bring(self, index: int) -> None:
        """Fetch in advance what sample `index` needs: nothing, once it is stored."""
        if self._store is None:
            self.source.bring(index)

    def collate(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """A batch, as `source` makes it."""
        batch: dict[str, Any] = self.source.collate(samples)
        if self._store is None:
            return batch
        return {FEATURES if key == IMAGE else key: value for key, value in batch.items()}
