"""A named collection of components, filled lazily from an index, by decorators, or by plugins."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lavislite.common.errors import UserError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


class UnknownNameError(UserError, LookupError):
    """A name that no built-in, plugin or user file has registered."""


class Registry:
    """Names to components of one kind.

    Built-ins are given as ``name -> "module:attribute"`` and imported on first use, so that listing
    names is free and one broken optional dependency does not hide the rest. Outside code registers
    with the decorator `register`, or ships an entry point in the group ``lavislite.<plural>``.
    """

    def __init__(self, kind: str, plural: str, index: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = f"lavislite.{plural}"
        self._index = dict(index)
        self._objects: dict[str, Any] = {}
        self._plugins: dict[str, Any] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """Class or function decorator that stores its target under `name`.

        Raises:
            ValueError: the name belongs to somebody else; both owners are named.
        """

        def store(target: T) -> T:
            owner = _path(target)
            taken = self._owner(name)
            if taken is not None and taken != owner:
                raise ValueError(
                    f"{self.kind} '{name}' is already registered by {taken}; "
                    f"{owner} needs another name."
                )
            self._objects[name] = target
            return target

        return store

    def get(self, name: str, key: str = "") -> Any:
        """The component called `name`, importing it when needed.

        Args:
            key: where the name stands in the configuration, for the message.

        Raises:
            UnknownNameError: nobody registered the name; the nearest known name is offered.
            ImportError: the component exists, but its module does not import; the cause is kept.
        """
        if name not in self._objects:
            if name in self._index:
                self._objects[name] = self._import(name, self._index[name])
            elif name in self._entry_points():
                self._objects[name] = self._load_plugin(name)
            else:
                known, where = self.names(), f"{key}: " if key else ""
                raise UnknownNameError(
                    f"{where}Unknown {self.kind} '{name}'.{did_you_mean(name, known)} "
                    f"Known: {', '.join(known) or '(none)'}. "
                    "Defined in your own code? Pass --user-dir."
                )
        return self._objects[name]

    def names(self, pattern: str = "*") -> list[str]:
        """All names, sorted; `pattern` may hold shell wildcards. Imports nothing."""
        known = {*self._index, *self._objects, *self._entry_points()}
        return sorted(name for name in known if fnmatch(name, pattern))

    def owner(self, name: str) -> str:
        """``"module:attribute"`` of the component called `name`, without importing it."""
        return self._owner(name) or ""

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._index or name in self._entry_points()

    def _owner(self, name: str) -> str | None:
        if name in self._index:
            return self._index[name]
        if name in self._objects:
            return _path(self._objects[name])
        plugin = self._entry_points().get(name)
        return plugin.value if plugin is not None else None

    def _import(self, name: str, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise ImportError(
                f"{self.kind} '{name}' ({path}) cannot be imported: {error}"
            ) from error

    def _load_plugin(self, name: str) -> Any:
        plugin = self._entry_points()[name]
        try:
            return plugin.load()
        except Exception as error:  # a plugin may fail in any way; the user must learn whose it is
            raise ImportError(
                f"{self.kind} '{name}' comes from the installed plugin {plugin.value}, "
                f"which fails to load: {error}"
            ) from error

    def _entry_points(self) -> dict[str, Any]:
        if self._plugins is None:
            self._plugins = {point.name: point for point in entry_points(group=self.group)}
        return self._plugins


def _path(target: Any) -> str:
    return f"{target.__module__}:{target.__qualname__}"


def __getattr__(name: str) -> Any:
    # LAVIS spells it `from lavis.common.registry import registry`.
    if name == "registry":
        return importlib.import_module("lavislite.common.catalog")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
