"""Work on a stream of items in several threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()


def in_parallel(
    work: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[tuple[T, R | Exception]]:
    """Each item with what `work` returned or raised, in the order in which they are done.

    `items` may be endless: no more than twice `workers` are taken ahead. The threads do not keep
    the process alive, so that Ctrl-C ends it at once; `work` leaves only finished files behind.
    """
    tasks: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[T, R | Exception]] = queue.SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        while (item := tasks.get()) is not _END and not stop.is_set():
            try:
                done.put((item, work(item)))
            except Exception as error:  # handed to the caller, with its item
                done.put((item, error))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    source = iter(items)
    waiting = 0
    try:
        while True:
            while waiting < 2 * workers and (item := next(source, _END)) is not _END:
                tasks.put(item)
                waiting += 1
            if not waiting:
                return
            result = done.get()
            waiting -= 1
            yield result
    finally:
        stop.set()
        for _ in threads:
            tasks.put(_END)
