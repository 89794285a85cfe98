"""Processors: one picture or one string in, what a model reads out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.registry import UnknownNameError, did_you_mean


def build_processor(cfg: Mapping[str, Any], where: str = "processor") -> Callable[[Any], Any]:
    """The processor of a ``{name: ..., **arguments}`` section.

    Args:
        cfg: the section; arguments go to the processor's constructor by name.
        where: the section's place in the config, for messages.

    Raises:
        ConfigError: unknown name or argument (the nearest one is offered), or a value that the
            processor refuses.
    """
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get("name"), str):
        raise ConfigError(
            f"{where}: expected `{{name: <processor>, ...}}`, saw {cfg!r}. "
            f"Known: {', '.join(catalog.processors.names())}"
        )
    arguments = {key: value for key, value in cfg.items() if key != "name"}
    name = cfg["name"]
    try:
        target = catalog.processors.get(name)
    except UnknownNameError as error:
        raise ConfigError(f"{where}.name: {error}") from error
    _check_arguments(target, name, arguments, where)
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} ({name}): {error}") from error


def _check_arguments(target: Any, name: str, arguments: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    for key in arguments:
        if key not in known:
            listed = ", ".join(known) or "(none)"
            raise ConfigError(
                f"{where}.{key}: {name} has no such argument.{did_you_mean(str(key), known)} "
                f"It takes: {listed}"
            )
    needed = [p.name for p in parameters if p.default is p.empty and p.name in known]
    if missing := [key for key in needed if key not in arguments]:
        raise ConfigError(f"{where}: {name} needs `{missing[0]}`.")
