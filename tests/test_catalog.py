"""The table of contents tells the truth."""

from __future__ import annotations

import importlib

import pytest

from lavislite import registry
from lavislite.common.registry import Registry

BUILT_IN = [
    pytest.param(kind, name, path, id=f"{kind.kind}:{name}")
    for kind in registry.KINDS
    for name, path in kind._index.items()
]


@pytest.mark.parametrize(("kind", "name", "path"), BUILT_IN)
def test_every_built_in_is_where_the_index_says(kind: Registry, name: str, path: str) -> None:
    module, _, attribute = path.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert f"{found.__module__}:{found.__qualname__}" == path
    assert kind.get(name) is found  # a decorator of the same name on something else would differ


@pytest.mark.parametrize("kind", [registry.models, registry.datasets, registry.tasks])
def test_configurable_parts_have_a_dataclass_of_options(kind: Registry) -> None:
    from dataclasses import fields

    from omegaconf import OmegaConf

    for name in kind.names():
        options = kind.get(name).Config
        assert fields(options)
        OmegaConf.structured(options)  # raises for types that a YAML file cannot hold
