"""Any frozen vision backbone and any frozen language model, bridged by BLIP-2's Q-Former.

    from lavislite import load_model_and_preprocess
    model, vis, txt = load_model_and_preprocess("blip2_feature_extractor", "pretrain", is_eval=True)

Everything here is imported on first use: ``import lavislite`` alone costs nothing.
"""

from importlib import import_module
from typing import Any

from lavislite.common.version import __version__

_WHERE = {
    "load_model": "lavislite.zoo",
    "load_model_and_preprocess": "lavislite.zoo",
    "load_preprocess": "lavislite.zoo",
    "load_dataset": "lavislite.zoo",
    "model_zoo": "lavislite.zoo",
    "dataset_zoo": "lavislite.zoo",
}

__all__ = [
    "__version__",
    "dataset_zoo",
    "load_dataset",
    "load_model",
    "load_model_and_preprocess",
    "load_preprocess",
    "model_zoo",
    "registry",
]


def __getattr__(name: str) -> Any:
    if name == "registry":
        return import_module("lavislite.common.catalog")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lavislite' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
