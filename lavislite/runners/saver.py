"""When a run saves, and how it learns that it could not."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lavislite.common import distributed
from lavislite.common.schema import RunConfig
from lavislite.runners import resume
from lavislite.runners.background import BackgroundWriter
from lavislite.runners.checkpoint import Checkpoints

if TYPE_CHECKING:
    from lavislite.runners.runner import Runner


class Saver:
    """Takes snapshots of a runner and writes them, in the background with ``run.save_async``."""

    def __init__(self, cfg: RunConfig, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._in_background = cfg.save_async
        self._period = (cfg.save_every_minutes or 0) * 60  # seconds; 0: never by the clock
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._writer = BackgroundWriter()

    @property
    def due(self) -> bool:
        """It is time for a checkpoint, by the main process's clock; False on the others."""
        late = time.monotonic() - self._saved_at >= self._period > 0
        return distributed.is_main() and late

    @property
    def failed(self) -> bool:
        """A checkpoint could not be written, as this process knows; `wait` says it to all."""
        return self._writer.failed

    def save(self, runner: Runner) -> Path:
        """The checkpoint of this step, begun unless it has been already. All processes call it.

        Raises:
            TrainingError: it cannot be written, or the one before could not.
        """
        step = runner.state.step
        if self._saved_step != step:
            # First the one before: host memory holds one snapshot at a time.
            self.wait()
            snapshot = resume.snapshot(runner)
            write = partial(self.checkpoints.write, snapshot)
            self._writer.start(write, f"checkpoint {self.checkpoints.at(step)}")
            self._saved_step, self._saved_at = step, time.monotonic()
        if not self._in_background:
            self.wait()
        return self.checkpoints.at(step)

    def wait(self) -> None:
        """Until the last checkpoint is in its place. All processes call it.

        Raises:
            TrainingError: on all processes, when it could not be written.
        """
        self._writer.wait()

    def close(self) -> None:
        """As `wait`, for the end of a run by an error: asks no other process, raises nothing."""
        self._writer.close()
