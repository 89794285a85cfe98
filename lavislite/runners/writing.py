"""File work of the main process that all processes answer for."""

from __future__ import annotations

from collections.abc import Callable

from lavislite.common.errors import TrainingError
from lavislite.common.together import on_main


def write_on_main(write: Callable[[], None], what: str) -> None:
    """Do file work on the main process; what goes wrong is raised on all of them.

    Raises:
        TrainingError: the disk is full or not writable.
    """

    def work() -> None:
        try:
            write()
        except write_errors() as error:
            raise cannot_write(what, error) from error

    on_main(work)


def write_errors() -> tuple[type[Exception], ...]:
    """What a full disk and its like raise: torch.save says RuntimeError."""
    from safetensors import SafetensorError

    return (OSError, RuntimeError, SafetensorError)


def cannot_write(what: str, error: BaseException) -> TrainingError:
    return TrainingError(
        f"Cannot write {what}: {str(error) or type(error).__name__}. Is the disk full or the "
        "folder read-only? Earlier checkpoints are complete; continue with run.resume=auto."
    )
