"""What is said to a call that cannot be: wrong samples, unknown names, missing keys."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from lavislite.common.errors import UserError
from lavislite.common.generation import GenerationOptions
from lavislite.common.registry import did_you_mean

Method = TypeVar("Method", bound=Callable[..., Any])

# What other calls and other libraries call the lengths.
_LENGTHS = {
    **dict.fromkeys(("max_length", "max_len", "max_new_tokens"), ("max_new_tokens", "max_len")),
    **dict.fromkeys(("min_length", "min_len", "min_new_tokens"), ("min_new_tokens", "min_len")),
}


def public_call(method: Method) -> Method:
    """A method of `samples` and options that answers wrong ones with a UserError."""
    what = method.__name__
    known = inspect.signature(method).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    names = [name for name in known if name not in ("self", "samples")]

    @functools.wraps(method)
    def checked(self: Any, samples: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(samples, Mapping):
            raise UserError(
                f"{what}: expected samples as a dictionary such as {{'image': ...}}, got a "
                f"{type(samples).__name__}."
            )
        for name in () if anything else options:
            if name not in names:
                raise _unknown(what, name, names)
        return method(self, samples, *args, **options)

    return checked  # type: ignore[return-value]


def make_options(
    what: str, given: Mapping[str, Any], *, lavis_lengths: bool = False, **own: tuple[str, Any]
) -> GenerationOptions:
    """Generation options by name; one text per sample.

    Args:
        what: the call, for messages.
        own: parameters of the call: their names -> the option that each stands for, and its value.

    Raises:
        UserError: a name is unknown; the nearest is offered.
        ConfigError: a value cannot be.
    """
    taken = {"lavis_lengths", *(option for option, _ in own.values())}
    if own:
        taken.add("num_captions")  # the call has one answer for each question
    free = [field.name for field in fields(GenerationOptions) if field.name not in taken]
    for name in given:
        if name not in free:
            raise _unknown(what, name, [*own, *free])
    options = GenerationOptions(**given, **dict(own.values()), lavis_lengths=lavis_lengths)
    options.check(what)
    return options


def _unknown(what: str, name: str, known: Sequence[str]) -> UserError:
    near = next((other for other in _LENGTHS.get(name, ()) if other in known), None)
    advice = did_you_mean(name, known) if near is None else f" Did you mean '{near}'?"
    return UserError(f"{what}: unknown option '{name}'.{advice} Known: {', '.join(known)}.")


def require_keys(samples: Mapping[str, Any], keys: Sequence[str], what: str) -> None:
    """Raise a UserError that names the first of `keys` the samples lack."""
    for key in keys:
        if samples.get(key) is None:
            raise UserError(f"{what} needs samples['{key}']; got {sorted(samples)}.")
