"""Models: batch -> losses, texts, features; and the public calls where LAVIS has them."""

from importlib import import_module
from typing import Any

_PUBLIC = ("load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module("lavislite.zoo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
