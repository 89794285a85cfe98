"""Writing while training goes on, one write at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lavislite.common import distributed
from lavislite.common.errors import TrainingError
from lavislite.common.logging import get_logger
from lavislite.common.together import on_main
from lavislite.runners.writing import cannot_write

logger = get_logger(__name__)


class BackgroundWriter:
    """Runs file work of the main process in a thread; all processes learn when it fails."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: TrainingError | None = None

    @property
    def failed(self) -> bool:
        """A write of this process has failed; `wait` says how."""
        return self._error is not None

    def start(self, write: Callable[[], None], what: str) -> None:
        """Begin `write` when the one before has ended. All processes call it, the main one writes.

        Raises:
            TrainingError: the one before has failed.
        """
        self.wait()
        if distributed.is_main():
            # A daemon, so that a second Ctrl-C does not have to wait for it.
            self._thread = threading.Thread(
                target=self._run, args=(write, what), name=f"writing {what}", daemon=True
            )
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. All processes call it.

        Raises:
            TrainingError: on all processes, when the write has failed; names file and reason.
        """

        def outcome() -> None:
            self._join()
            error, self._error = self._error, None
            if error is not None:
                raise error

        on_main(outcome)

    def close(self) -> None:
        """Let the last write of this process end; when it has failed, only say so."""
        if self._thread is not None and self._thread.is_alive():
            logger.info("Finishing: %s", self._thread.name)
        self._join()
        if self._error is not None:
            logger.error("%s", self._error)
            self._error = None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, write: Callable[[], None], what: str) -> None:
        try:
            write()
        except Exception as error:  # whatever it is, the run must not go on without checkpoints
            self._error = cannot_write(what, error)
            self._error.__cause__ = error
