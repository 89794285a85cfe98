"""The toy model with faults: ``FAULT=<what>:<rank>:<step>`` says what befalls which process when.

The process that a launcher has started again is spared.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import toy_parts
from torch import Tensor

from lavislite import registry
from lavislite.common import distributed


@registry.register_model("faulty")
class Faulty(toy_parts.Toy):
    Config = toy_parts.ToyConfig

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        self.steps = getattr(self, "steps", 0) + 1
        time.sleep(float(os.environ.get("PAUSE", "0")))
        what, rank, step = os.environ.get("FAULT", "none:0:0").split(":")
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and (distributed.rank(), self.steps) == (int(rank), int(step)):
            befall(what)
        return super().forward(samples)


def befall(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise ValueError("boom")
    elif what == "late":  # keeps the others waiting, then fails
        time.sleep(4)
        raise ValueError("too late")
    elif what == "hang":
        time.sleep(1000)
