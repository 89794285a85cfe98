"""Timing of several ways to do the same, in turn, so that what else the machine does hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lavislite.common.allocator import keep_memory

Seconds = dict[str, list[float]]


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> Seconds:
    """Seconds of each side in each round: A B C, A B C, ...; the first rounds do not count."""
    found: Seconds = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                found[name].append(time.perf_counter() - start)
    return found


def ratio(seconds: Seconds, peer: str, ours: str) -> float:
    """How many times as long `peer` takes: the median over the rounds, each with itself alone."""
    pairs = zip(seconds[peer], seconds[ours], strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


def medians(seconds: Seconds) -> dict[str, float]:
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


def gflop(work: Callable[[], Any]) -> float:
    """Operations of matrix products and attention, forward and backward, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def product_of(rows: int = 1024, inner: int = 384, columns: int = 1536, times: int = 8) -> Any:
    """A side that is nothing but matrix products, and its GFLOP; its rate makes the floor."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)

    def work() -> None:
        for _ in range(times):
            torch.mm(a, b)

    return work, 2 * rows * inner * columns * times / 1e9


def compared(
    sides: Mapping[str, Side],
    pairs: Sequence[tuple[str, str]],
    gflop: dict[str, float],
    rounds: int,
) -> dict[str, Any]:
    """What the steps of `sides` take, in turn, and the floor of each in the same rounds.

    Args:
        pairs: (peer, ours), whose ratios are wanted.
        gflop: operations of a step of each side.
    """
    product, product_gflop = product_of()
    works = {name: side.step for name, side in sides.items()}
    seconds = in_turn({**works, "product": product}, rounds)
    rate = product_gflop / medians(seconds)["product"]
    return {
        "seconds": {name: medians(seconds)[name] for name in sides},
        "seconds_floor": {name: round(value / rate, 3) for name, value in gflop.items()},
        "times_faster": {
            f"{ours} than {peer}": round(ratio(seconds, peer, ours), 2) for peer, ours in pairs
        },
        "matmul_gflops_per_second": round(rate, 1),
    }


def both_ways_with_memory(
    sides: Mapping[str, Side], pairs: Sequence[tuple[str, str]], rounds: int
) -> dict[str, Any]:
    """`compared` as the C library keeps memory by itself, then as our runner asks it to on a CPU.

    For all sides alike: what is kept helps the peer as well. There is no way back, so call it last.
    """
    gflop = {name: round(side.gflop(), 1) for name, side in sides.items()}
    found = {"gflop": gflop, **compared(sides, pairs, gflop, rounds)}
    keep_memory()
    return {**found, "memory_kept": compared(sides, pairs, gflop, rounds)}


def steps_report(found: Mapping[str, Any]) -> str:
    """`both_ways_with_memory` as a table and a line of ratios for each way."""
    rows = [["side", "GFLOP", "seconds", "floor", "memory kept: seconds", "floor"]]
    kept = found["memory_kept"]
    for name, work in found["gflop"].items():
        spent = (part[key][name] for part in (found, kept) for key in ("seconds", "seconds_floor"))
        rows.append([name, f"{work:.0f}", *(f"{value:.2f}" for value in spent)])
    lines = [
        f"{title}{', '.join(f'{name}: {x:.2f} x' for name, x in part['times_faster'].items())}"
        for title, part in (("", found), ("memory kept: ", kept))
    ]
    return "\n".join([table(rows), "", *lines])


class Side:
    """One way to the loss, on weights that it trains.

    fused: the optimizer's step is one kernel, as in our runner; the original's loops.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[[dict[str, Any]], torch.Tensor],
        batch: dict[str, Any],
        *,
        fused: bool = False,
    ) -> None:
        self.loss, self.batch, self.model = loss, batch, model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=fused)

    def backward(self) -> None:
        self.loss(self.batch).backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gflop(self) -> float:
        found = gflop(self.backward)
        self.model.zero_grad(set_to_none=True)
        return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
