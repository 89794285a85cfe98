"""LAVIS's ``from lavis.datasets.builders import load_dataset, dataset_zoo``."""

from importlib import import_module
from typing import Any

_PUBLIC = ("load_dataset", "dataset_zoo")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module("lavislite.zoo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
