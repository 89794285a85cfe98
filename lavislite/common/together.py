"""Work of one process that all processes answer for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lavislite.common import distributed
from lavislite.common.errors import UserError

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, on all; what it raises there is raised on all."""
    return _once(work, distributed.is_main())


def on_each_machine(work: Callable[[], Any]) -> None:
    """`work` on one process per machine, before the others go on; errors are raised on all."""
    _once(lambda: (work(), None)[1], distributed.is_local_main())


def _once(work: Callable[[], Any], mine: bool) -> Any:
    result, error = None, None
    if mine:
        try:
            result = work()
        except Exception as caught:  # the others wait for us: tell them before it is raised here
            error = caught
            error.shared = True  # type: ignore[attr-defined]
    told = distributed.all_gather_objects((result, None if error is None else _sendable(error)))
    if error is not None:
        raise error
    problem = next((there for _, there in told if there is not None), None)
    if problem is not None:
        raise problem
    return told[0][0]


def _sendable(error: Exception) -> UserError:
    """An error of ours as it is; of any other its words, as not all can be pickled."""
    if isinstance(error, UserError):
        return error
    words = UserError(str(error) or type(error).__name__)
    words.shared = True  # type: ignore[attr-defined]
    return words
