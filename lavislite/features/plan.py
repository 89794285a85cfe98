"""One store of a run: what is there of it, what is not, and how the missing comes there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavislite.common import distributed
from lavislite.common.io import file_lock
from lavislite.common.logging import get_logger
from lavislite.common.schema import RunConfig
from lavislite.features import identity
from lavislite.features.fill import Missing, fill
from lavislite.features.layout import Layout, distance
from lavislite.features.space import Need, shown
from lavislite.features.splits import CachedSplit
from lavislite.features.store import FeatureStore, header_of

logger = get_logger(__name__)

_VERSION = 1  # of what lies in the folder
_PROBED = 256  # numbers of the tower's answer to one picture that are remembered
# How far these may move (other kernels, another device) before it counts as another tower.
_SAME = {"float32": 0.005}
_SAME_ROUNDED = 0.1


@dataclass(frozen=True)
class Alike:
    """Splits with the same processor.

    Attributes:
        processor: what tells it from others.
        example: what it makes of one picture, [3, H, W].
    """

    processor: dict[str, Any]
    splits: list[CachedSplit]
    example: torch.Tensor


@dataclass
class Plan:
    """What is there of one store, and what is not.

    Attributes:
        pictures: of each split, names and stamps [2, n].
    """

    splits: Sequence[CachedSplit]
    store: FeatureStore
    pictures: list[np.ndarray]

    def __post_init__(self) -> None:
        self.every = np.concatenate(self.pictures, 1)
        self.rows = self.store.rows_of(self.every[0])
        self.done = self._done()

    def _done(self) -> np.ndarray:
        """[n] whether the features of each picture are there, and are those of its file now."""
        if not len(stamps := self.store.stamps()):
            return np.zeros(len(self.rows), bool)
        wanted = self.every[1]
        return (self.rows >= 0) & (wanted != 0) & (stamps[self.rows] == wanted)

    def need(self) -> Need:
        """The bytes of the pictures that have no row yet, and of those whose row is not right."""
        store, names = self.store, self.every[0]
        new, missing = (len(np.unique(names[chosen])) for chosen in (self.rows < 0, ~self.done))
        whole = store.nbytes(len(store.names()) + new)
        room = max(0, whole - store.bytes_there()) if missing else 0
        return Need(store.folder, whole, store.nbytes(missing), room)

    def say(self, dry_run: bool) -> None:
        store, need = self.store, self.need()
        n, missing = len(np.unique(self.every[0])), need.due // store.nbytes(1)
        what = f"{n:,} pictures" + (f" x {store.views} views" if store.views > 1 else "")
        logger.info(
            "run.feature_cache: %s x %d x %d numbers (%s), %s in %s; %s to be computed, %s%s",
            *(what, store.layout.tokens, store.layout.width, store.layout.dtype),
            *(shown(need.whole), need.folder, f"{missing:,}", shown(need.due)),
            " (not in a dry run, which goes without)" if dry_run else "",
        )

    def carry_out(self, model: Any, run: RunConfig, near: Sequence[int]) -> None:
        """Compute what is missing, and let the splits read."""
        if distributed.max_int(int(not self.done.all())):
            first = near[0] == distributed.rank()
            with ExitStack() as stack:
                if first:  # of two runs started together the second waits
                    stack.enter_context(file_lock(self.store.folder.with_suffix(".lock")))
                    self._prepare()
                distributed.barrier()
                self._fill(model, run, near, first)
        self._look_again()
        for split, rows in zip(self.splits, self._shares(), strict=True):
            split.use(self.store, rows)

    def _prepare(self) -> None:
        self.store.folder.mkdir(exist_ok=True)
        self._look_again()  # another run may have filled it meanwhile
        store, names = self.store, self.every[0]
        store.note()
        store.allot(names)
        rows = store.rows_of(names)
        stale = (store.stamps()[rows] != 0) & ~self.done
        store.forget(np.unique(rows[stale]))

    def _look_again(self) -> None:
        """After others, or this process, have written."""
        self.store = FeatureStore.opened(self.store.folder, self.store.header)
        self.rows = self.store.rows_of(self.every[0])
        self.done = self._done()

    def _fill(self, model: Any, run: RunConfig, near: Sequence[int], first: bool) -> None:
        self._look_again()
        distributed.barrier()  # nobody writes before all have looked
        missing = self._missing()
        shared_out = missing.row // self.store.per_file % len(near)
        error = fill(
            self.store,
            missing.of(shared_out == near.index(distributed.rank())),
            model.tower_features,
            batch_size=run.batch_size_train,
            num_workers=run.num_workers,
            seed=run.seed,
        )
        if first and error is not None:
            self.store.note(relative_error=error)
            logger.info(
                "run.feature_cache: stored as %s; relative RMS error %.2g",
                *(self.store.layout.dtype, error),
            )

    def _missing(self) -> Missing:
        """The first of each picture that is not there, by row."""
        number = [np.arange(found.shape[1]) for found in self.pictures]
        split = np.repeat(np.arange(len(number)), [len(part) for part in number])
        _, first = np.unique(self.rows, return_index=True)
        wanted = first[~self.done[first]]
        every = Missing(self.splits, split, np.concatenate(number), self.rows, *self.every)
        return every.of(wanted)

    def _shares(self) -> list[np.ndarray]:
        """Of each split the rows of its pictures; -1 for those that could not be read."""
        rows = np.where(self.done, self.rows, -1)
        return np.split(rows, np.cumsum([found.shape[1] for found in self.pictures])[:-1])


def make_plan(
    part: Alike, model: Any, vision: Any, run: RunConfig, root: Path, device: torch.device
) -> Plan:
    """The plan for splits with one processor; all processes get the main one's answers.

    Args:
        vision: the options of the tower.
        root: the folder of all stores.
    """
    options = run.feature_cache
    assert options is not None
    features = model.tower_features(part.example[None].to(device))[0].float()
    found = None
    if distributed.is_main():
        step = max(1, features.numel() // _PROBED)
        pictures = [identity.of_pictures(split.files) for split in part.splits]
        found = pictures, features.flatten()[::step][:_PROBED].tolist()
    pictures, probe = distributed.broadcast_object(found)
    tokens, width = features.shape
    facts = {
        "version": _VERSION,
        "processor": part.processor,
        "tower": identity.of_tower(model, vision),
        "dtype": options.dtype,
        "views": options.views,
    }
    header = header_of(
        Layout(tokens, width, options.dtype),
        options.views,
        sum(found.shape[1] for found in pictures),
        made_from=facts,
        probe=probe,
    )
    return Plan(part.splits, _fitting(root, identity.digest(facts), header), pictures)


def _fitting(root: Path, name: str, header: dict[str, Any]) -> FeatureStore:
    """The store called `name`; another one beside it if the tower answers otherwise than it did.

    Its code may have changed, or weights that the fingerprint does not look at.
    """
    names = (f"{name}-{k}" if k else name for k in count())
    stores = (FeatureStore.opened(root / name, header) for name in names)
    return next(
        store
        for store in stores
        if all(distributed.all_gather_objects(_same_answer(store.header, header)))
    )


def _same_answer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    if any(before[key] != now[key] for key in ("tokens", "width")):
        return False
    kinds = now["made_from"]["tower"]["arithmetic"]
    allowed = max((_SAME.get(kind, _SAME_ROUNDED) for kind in kinds), default=_SAME_ROUNDED)
    return distance(torch.tensor(now["probe"]), torch.tensor(before["probe"])) < allowed
