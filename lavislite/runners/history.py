"""The curves of a run, read from its log."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavislite.runners.figures import Curve


@dataclass
class History:
    """Curves of a run: training losses, learning rate, and each evaluated metric by its path."""

    train: dict[str, Curve] = field(default_factory=dict)
    lr: Curve = field(default_factory=list)
    evaluated: dict[str, Curve] = field(default_factory=dict)

    def held_out_losses(self) -> dict[str, Curve]:
        return {path: curve for path, curve in self.evaluated.items() if _is_loss(path)}

    def by_split(self) -> dict[str, dict[str, Curve]]:
        """``<dataset>/<split>`` -> metric -> curve."""
        splits: dict[str, dict[str, Curve]] = defaultdict(dict)
        for path, curve in self.evaluated.items():
            split, _, metric = path.rpartition("/")
            splits[split][metric] = curve
        return dict(splits)

    def other_metrics(self) -> dict[str, Curve]:
        """What is neither a loss nor a recall."""
        recall = {split for split, curves in self.by_split().items() if "txt_r1" in curves}
        return {
            path: curve
            for path, curve in self.evaluated.items()
            if not _is_loss(path) and path.rpartition("/")[0] not in recall
        }


def read_log(log: Path) -> History:
    """Curves from the run's log; lines that are not whole records (a crash's last) are passed over.

    A record says ``event`` (or ``kind``) train or eval. Evaluated metrics stand under ``metrics``
    or, by their paths, in the record itself.
    """
    train: dict[str, dict[float, float]] = defaultdict(dict)
    evaluated: dict[str, dict[float, float]] = defaultdict(dict)
    for record in _records(log):
        kind, step = record.get("event", record.get("kind")), record["step"]
        if kind == "train":
            for name, value in _numbers(record):
                if name == "lr" or name.startswith("loss"):
                    train[name][step] = value
        elif kind == "eval":
            nested = record.get("metrics")
            for name, value in _numbers(nested if isinstance(nested, dict) else record):
                if nested is not None or "/" in name:
                    evaluated[name][step] = value
    lr = sorted(train.pop("lr", {}).items())
    # The total first, its parts after it.
    names = sorted(train, key=lambda name: (name != "loss", name))
    return History(
        train={name: sorted(train[name].items()) for name in names},
        lr=lr,
        evaluated={name: sorted(points.items()) for name, points in evaluated.items()},
    )


def _records(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            found.append(record)
    return found


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _is_loss(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith("loss")
