"""Other functions in a module for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(place: Any, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, `place` has `functions` under their names, for all threads of this process."""
    own = {name: getattr(place, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(place, name, function)
        yield
    finally:
        for name, function in own.items():
            setattr(place, name, function)
