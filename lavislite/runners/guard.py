"""The health of each step: numbers that are not finite, and gradients far larger than usual."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lavislite.common import distributed
from lavislite.common.errors import TrainingError

_LOOK_AFTER = 256  # steps: so many are remembered for a host that does not look
_EVENTS = 32  # remembered between two logs; of more, skips are still counted
_WARM_UP = 20  # steps before "usual" means something
_DECAY = 0.98  # of the running mean: about the last 50 steps


@dataclass(frozen=True)
class Event:
    """Something to tell about one step.

    Attributes:
        kind: "skip" (not finite, left out) or "spike" (a gradient far larger than usual).
        step: its number, counted from 1.
        usual: the running mean of the gradient norm before it; 0 where there is none yet.
        suspect: the loss was not finite already in this process's part of the batch.
        records: this process's samples: their indices, later their names.
    """

    kind: str
    step: int
    grad_norm: float
    usual: float
    suspect: bool
    records: list[Any]


@dataclass
class Usual:
    """Exponential running mean of the gradient norm."""

    mean: float = 0.0
    steps: int = 0

    def is_spike(self, norm: float, ratio: float) -> bool:
        """Whether `norm` is more than `ratio` times the mean; counts it in.

        A spike counts no more than `ratio` means, so one does not hide the next, but the mean
        follows a norm that stays high.
        """
        spike = self.steps >= _WARM_UP and norm > ratio * self.mean
        self.steps += 1
        # A plain mean at first, so that the first step does not weigh more than others.
        weight = max(1 - _DECAY, 1 / self.steps)
        self.mean += ((ratio * self.mean if spike else norm) - self.mean) * weight
        return spike


class FiniteGuard:
    """Leaves out steps whose loss or gradient is not finite, without waiting for a GPU.

    `observe` returns `skip`, a flag on the device with which the optimizer leaves weights and
    moments alone; it is the same on all processes. The host looks when it logs anyway; on the CPU,
    where looking costs nothing, at every step. `allowed` such steps are left out and told of as
    events. The next one stops the run: from then on no step changes anything, so the weights are
    those before it when the host learns of it.

    With fp16's gradient scaler, overflowing gradients are normal (such steps are left out and the
    scale is lowered); then only the loss counts.
    """

    def __init__(
        self,
        device: torch.device,
        record_id: Callable[[int], str],
        *,
        scaled: bool,
        allowed: int = 0,
        spike: float | None = None,
    ) -> None:
        self.every_step = device.type != "cuda"
        self.skipped = 0
        self._record_id, self._scaled = record_id, scaled
        self._allowed, self._spike = allowed, math.inf if spike is None else spike
        self._bad_steps = torch.zeros((), dtype=torch.long, device=device)
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        self._facts = torch.zeros(_LOOK_AFTER, 3, device=device)  # bad, suspect, gradient norm
        self._seen: list[tuple[int, list[int]]] = []  # of each row: step, this process's records
        self._usual = Usual()
        self._events: list[Event] = []

    def observe(
        self, step: int, loss: Tensor, grad_norm: Tensor, batches: Sequence[dict[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        """Note step number `step` (from 0). All processes call it together.

        Returns:
            `skip`: the optimizer must not use the gradients; `bad`: loss or gradient is not what
            it should be. Both are boolean scalars on the device, equal on all processes.
        """
        suspect = ~torch.isfinite(loss)
        flags = torch.stack([suspect, ~torch.isfinite(grad_norm)]).float()
        no_loss, no_gradient = (distributed.all_reduce_sum(flags) > 0).unbind()
        bad = no_loss if self._scaled else no_loss | no_gradient
        self._stopped = self._stopped | (bad & (self._bad_steps >= self._allowed))
        self._bad_steps = self._bad_steps + bad
        facts = [bad.float(), suspect.float(), grad_norm.detach().float()]
        self._facts[len(self._seen)] = torch.stack(facts)
        indices = [batch["index"].tolist() for batch in batches if "index" in batch]
        self._seen.append((step, [i for batch in indices for i in batch]))
        return no_loss | no_gradient | self._stopped, bad

    def due(self) -> bool:
        """The host must look now: always on the CPU, else when no more can be remembered."""
        return self.every_step or len(self._seen) == _LOOK_AFTER

    def check(self) -> None:
        """Look at the steps noted so far. All processes call it together.

        Raises:
            TrainingError: naming step, gradient norm and records of the step that was one bad
                step too many.
        """
        rows = self._facts[: len(self._seen)].tolist()
        seen, self._seen = self._seen, []
        for (step, records), (bad, suspect, norm) in zip(seen, rows, strict=True):
            usual = self._usual.mean
            if bad:
                event = Event("skip", step + 1, norm, usual, bool(suspect), records)
                if self.skipped >= self._allowed:
                    self._stop(event)
                self.skipped += 1
                self._note(event)
            elif math.isfinite(norm) and self._usual.is_spike(norm, self._spike):
                self._note(Event("spike", step + 1, norm, usual, False, records))

    def events(self) -> list[Event]:
        """What happened since the last call, with the records of all processes.

        All processes call it together.
        """
        own, self._events = self._events, []
        # The main process decides: by rounding, a spike here need not be one there.
        return _merged(distributed.all_gather_objects([self._named(event) for event in own]))

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, of steps that are all looked at. All call it together.

        Raises:
            TrainingError: as `check`.
        """
        self.check()
        return {
            "skipped": self.skipped,
            "usual": asdict(self._usual),
            "events": [asdict(event) for event in self._events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.skipped = int(state["skipped"])
        self._bad_steps.fill_(self.skipped)
        self._usual = Usual(**state["usual"])
        self._events = [Event(**event) for event in state["events"]]

    def _note(self, event: Event) -> None:
        if len(self._events) < _EVENTS:
            self._events.append(event)

    def _named(self, event: Event) -> Event:
        return replace(event, records=[self._record_id(i) for i in event.records])

    def _stop(self, event: Event) -> None:
        [event] = _merged([[part] for part in distributed.all_gather_objects(self._named(event))])
        norm, records = _shown_norm(event.grad_norm), _shown_records(event.records)
        earlier = f" {self.skipped} such steps were left out before." if self.skipped else ""
        raise TrainingError(
            f"The loss or its gradient is not finite at step {event.step} (gradient norm {norm})."
            f"{earlier} Records of that step: {records}. The weights are as they were before it. "
            "Usual cures: a lower run.init_lr, more run.warmup_steps, run.clip_grad_norm=1.0, "
            "run.precision=bf16 or fp32 instead of fp16; run.skip_nonfinite=10 leaves out up to "
            "ten such steps."
        )


def _merged(parts: Sequence[Sequence[Event]]) -> list[Event]:
    """The first process's events, with the records of all; of suspects only, if there are any."""
    merged = []
    for event in parts[0]:
        same = [e for part in parts for e in part if (e.kind, e.step) == (event.kind, event.step)]
        same = [e for e in same if e.suspect] or same
        # Each once: after a change of their number, all processes go on from one's events.
        records = dict.fromkeys(i for e in same for i in e.records)
        merged.append(replace(event, records=list(records)))
    return merged


def describe(event: Event) -> str:
    """One sentence or two for people."""
    norm, records = _shown_norm(event.grad_norm), _shown_records(event.records)
    if event.kind == "skip":
        what = f"Step {event.step} is left out: its loss or gradient is not finite (norm {norm})."
    else:
        what = f"Step {event.step}: gradient norm {norm}, where {event.usual:.4g} is usual."
    return f"{what} Its records: {records}."


def _shown_norm(norm: float) -> str:
    return "not a number" if math.isnan(norm) else f"{norm:.4g}"


def _shown_records(records: Sequence[Any], most: int = 20) -> str:
    more = len(records) - most
    shown = ", ".join(map(str, records[:most])) or "unknown"
    return shown + (f" and {more} more" if more > 0 else "")
