"""How an error of one process becomes the end of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lavislite.common.errors import TrainingError, UserError
from lavislite.common.watch import Watch

_ALIKE = 1.5  # seconds: of an error that all have found the main process speaks


@contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """See `distributed.failing_together`. `watch` stops at the end."""
    leave = watch.stop if watch is not None else lambda: None
    try:
        yield
    except (Exception, KeyboardInterrupt) as caught:
        error = worker_death(caught) or caught
        if watch is not None:
            leave = watch.leave
            if not getattr(error, "shared", False):
                _tell(watch, error)
        if error is caught:
            raise
        raise error from caught
    finally:
        leave()


def _tell(watch: Watch, error: BaseException) -> None:
    cause = watch.blame() if _is_connection_error(error) else None
    if cause is not None:
        watch.stop()  # before it says the same
        watch.say(cause)
        raise SystemExit(1) from error
    words = _in_words(error)
    first = watch.hear(_ALIKE) if watch.rank and isinstance(error, UserError) else None
    first = first or watch.fail(words)
    error.own_rank = first.rank == watch.rank or first.message != words  # type: ignore[attr-defined]


def _in_words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _is_connection_error(error: BaseException) -> bool:
    """An exchange broke off: gloo and NCCL say so in a RuntimeError when a partner has gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "nccl", "connection closed", "connection reset")
    )


def worker_death(error: BaseException) -> TrainingError | None:
    """The lesson of a data loading worker that was killed; None for any other error."""
    text = str(error)
    if not (isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")):
        return None
    what = text.splitlines()[0].partition(". It is possible")[0].rstrip(". ")
    return TrainingError(
        f"{what}. Most often memory ran out: RAM{_free_shm()}. Lower run.num_workers or "
        "run.batch_size_train, or give the job (a container: --shm-size) more. "
        "Go on with run.resume=auto."
    )


def _free_shm() -> str:
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:  # not Linux
        return ""
    return f", or /dev/shm, which has {shm.f_bavail * shm.f_frsize / 2**30:.1f} GB free"
