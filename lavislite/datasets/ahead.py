"""Receiving the next batch while this process computes.

To take a large batch out of a worker's hands costs milliseconds: a message, a handshake, a mapping.
With a GPU torch has a thread of its own for that, which pins memory; without one this is it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_LOOK = 0.1  # seconds after which the thread looks whether it is still wanted
_PATIENCE = 5.0  # seconds for it to end; a source that hangs would otherwise hold up the end


def one_ahead(source: Iterable[T]) -> Generator[T, None, None]:
    """The items of `source`, each taken from it while the one before is in use.

    What `source` raises is raised here, in its turn. Closing waits for the item that is on its way.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
    closed = threading.Event()

    def hand_over(item: Any, error: BaseException | None) -> None:
        while not closed.is_set():
            with suppress(queue.Full):  # then it may no longer be wanted
                ready.put((item, error), timeout=_LOOK)
                break

    def receive() -> None:
        try:
            for item in source:
                hand_over(item, None)
                if closed.is_set():
                    return
            hand_over(None, StopIteration())
        except BaseException as error:  # whatever it is belongs to whoever asks for the next item
            hand_over(None, error)

    thread = threading.Thread(target=receive, name="one_ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join(_PATIENCE)
