"""Layers of settings into a dataclass; errors name the file, the key and the nearest key."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.layers import Layer
from lavislite.common.registry import did_you_mean


def merge(section: str, schema: type, layers: list[Layer], problems: list[str]) -> Any:
    """An instance of `schema` with the layers applied; what does not fit goes into `problems`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.structured(schema)
    for layer in layers:
        node = _merge_layer(node, section, layer, problems)
    try:
        OmegaConf.resolve(node)
        missing = sorted(OmegaConf.missing_keys(node))
        if not missing:
            return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        problems.append(f"{_where(layers)}: {section}: {str(error).splitlines()[0]}")
        return None
    problems.extend(f"{_where(layers)}: {section}.{key} is missing" for key in missing)
    return None


def _where(layers: list[Layer]) -> str:
    return layers[-1].origin if layers else "defaults"


def _merge_layer(node: Any, section: str, layer: Layer, problems: list[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    data: Any = OmegaConf.to_container(OmegaConf.create(layer.data), resolve=False)
    _make_room(node, data)
    while data:
        try:
            return OmegaConf.merge(node, data)
        except (OmegaConfBaseException, TypeError) as error:
            keys = _guilty(node, data)
            if keys is None:
                raise ConfigError(f"{layer.origin}: {section}: {error}") from error
            problems.append(f"{layer.origin}: {_describe(node, data, section, keys)}")
            _remove(data, keys)  # and look for more
    return node


def _make_room(node: Any, data: dict[str, Any]) -> None:
    """A list replaces a mapping and the other way round, wherever the schema takes both.

    OmegaConf merges two of a kind only: `node` forgets what has another. An optional section begins
    with its defaults when it is first spoken of; ``true`` asks for these, ``false`` is null.
    """
    from omegaconf import DictConfig, ListConfig

    for key, value in data.items():
        child = node._get_node(key) if str(key) in _field_names(node) else None
        if child is not None and _is_optional_section(child):
            if isinstance(value, bool):
                data[key] = value = {} if value else None
            if isinstance(value, dict) and child._is_none():
                node[key] = child._metadata.ref_type()
                child = node._get_node(key)
        if isinstance(child, DictConfig) and isinstance(value, dict):
            _make_room(child, value)
            continue
        list_now, list_before = isinstance(value, list), isinstance(child, ListConfig)
        other_kind = list_now != list_before and isinstance(value, list | dict)
        if isinstance(child, DictConfig | ListConfig) and other_kind and _is_free(child):
            node[key] = None


def _is_free(child: Any) -> bool:
    """Whether the schema leaves the kind of a value open."""
    return child._metadata.ref_type is Any


def _is_optional_section(child: Any) -> bool:
    """Whether `child` is, or could be, a dataclass where null stands for none."""
    from omegaconf import DictConfig

    if not isinstance(child, DictConfig):
        return False
    return child._metadata.optional and is_dataclass(child._metadata.ref_type)


def _guilty(node: Any, data: Any, above: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The path of one key of `data` that does not fit `node`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key, value in data.items():
        try:
            OmegaConf.merge(node, {key: value})
        except (OmegaConfBaseException, TypeError):
            path = (*above, str(key))
            inner = _child(node, key)
            if inner is not None and isinstance(value, dict) and value:
                return _guilty(inner, value, path) or path
            return path
    return None


def _child(node: Any, key: str) -> Any:
    """The mapping under `key`, or None when the key is unknown or holds something else."""
    from omegaconf import DictConfig

    child = node._get_node(key) if key in _field_names(node) else None
    if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
        return child
    return None


def _field_names(node: Any) -> list[str]:
    return [str(key) for key in node]


def _describe(node: Any, data: Any, section: str, keys: tuple[str, ...]) -> str:
    """One sentence about the value at `keys`: unknown key, or expected and seen type."""
    for key in keys[:-1]:
        node, data = node._get_node(key), data[key]
    known, last = _field_names(node), keys[-1]
    full = ".".join((section, *keys))
    if last not in known:
        near = did_you_mean(last, known)
        listed = "" if near else f" Known: {', '.join(known)}"
        return f"{full}: unknown key.{near}{listed}"
    expected = "a mapping" if _child(node, last) is not None else _type_name(node, last)
    return f"{full}: expected {expected}, saw {data[last]!r} ({type(data[last]).__name__})"


def _type_name(node: Any, key: str) -> str:
    from omegaconf import OmegaConf

    schema = OmegaConf.get_type(node)
    if schema is not None and is_dataclass(schema):
        for field in fields(schema):
            if field.name == key:
                kind = field.type
                return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return "another type"


def _remove(data: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys[:-1]:
        data = data[key]
    for key in list(data):
        if str(key) == keys[-1]:
            del data[key]
