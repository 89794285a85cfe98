"""``lavislite validate``: read the configuration and every annotation file, build no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lavislite.build import build_data, build_loader, with_feature_cache
from lavislite.checks import check_image_size, check_names, check_values
from lavislite.common.config import Config


def validate_project(cfg: Config) -> Iterator[str]:
    """One line per split that was read.

    Raises:
        UserError: the first thing that is wrong, naming key, file or record.
    """
    check_names(cfg)
    check_values(cfg)
    data = build_data(cfg, train=not cfg.run.evaluate)
    with_feature_cache(cfg, data)
    check_image_size(cfg, data)
    if not cfg.run.evaluate:
        build_loader(cfg, data)
    for dataset in data:
        yield f"datasets.{dataset.name}: {dataset.split}: {_size(dataset)}"


def _size(dataset: Any) -> str:
    if len(dataset) == 0 and hasattr(dataset, "pictures"):  # captions that only a server has
        return f"{len(dataset.pictures())} pictures without captions"
    return f"{len(dataset)} samples"
