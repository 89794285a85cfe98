"""How much arithmetic a training step is, and what part of the device's speed that makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lavislite.common import distributed

# Dense bf16 or fp16 products with fp32 sums, in TFLOP/s, from the makers' data sheets. The words
# must all occur in the device's name; the first line that fits counts.
_PEAKS: tuple[tuple[str, float], ...] = (
    *(("B200", 2250.0), ("GH200", 989.0), ("H200 NVL", 835.0), ("H200", 989.0)),
    *(("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0), ("H800", 989.0)),
    *(("A100", 312.0), ("A800", 312.0), ("A40", 149.7), ("A30", 165.0), ("A10", 125.0)),
    *(("L40S", 362.0), ("L40", 181.0), ("L4", 121.0), ("V100 PCIE", 112.0), ("V100", 125.0)),
    *(("T4", 65.0), ("RTX 4090", 165.2), ("RTX 3090", 71.0), ("RTX A6000", 154.8)),
)
_SLOWER = {"mig", "laptop", "d", "max"}  # a part of that device, or a slower one of its name


def peak_tflops(device_name: str) -> float | None:
    """Peak of a GPU in bf16 or fp16 (dense), by torch's name for it; None if it is not known."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & _SLOWER:
        return None
    fitting = (peak for name, peak in _PEAKS if words >= set(name.lower().split()))
    return next(fitting, None)


class FlopCounter(TorchDispatchMode):
    """Adds up the floating-point operations of what runs inside, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` comes to the same sum, but also follows the modules,
    by hooks on them and on every output; a step of a real run is better left alone.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports triton, half a second

        super().__init__()
        self.flops = 0
        self._formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "_overloadpacket", func))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class Arithmetic:
    """FLOPs per sample of this run, counted once, and the rates that follow from them.

    What activation checkpointing computes again counts as well.

    Args:
        uncompiled: makes a context in which compiled layers are not: only so they can be counted.
    """

    def __init__(
        self,
        device: torch.device,
        precision: str,
        uncompiled: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._uncompiled = uncompiled
        self._flops_per_sample: float | None = None
        self._steps = 0
        tensor_cores = device.type == "cuda" and precision != "fp32"
        self._peak = peak_tflops(torch.cuda.get_device_name(device)) if tensor_cores else None

    @contextmanager
    def counted(self, samples: int) -> Iterator[None]:
        """Surrounds forward and backward of a step over `samples` samples of this process.

        Counting costs time on the host, so only one step is counted: the second, since parts of a
        model may be set up in the first.
        """
        self._steps += 1
        if self._steps != 2:
            yield
            return
        with self._uncompiled(), FlopCounter() as counter:
            yield
        self._flops_per_sample = counter.flops / samples

    def rates(self, samples_per_second: float) -> dict[str, float]:
        """``tflops`` per process and second and, where the peak is known, ``mfu`` as a fraction.

        Args:
            samples_per_second: of all processes together.
        """
        if not self._flops_per_sample:
            return {}
        tflops = self._flops_per_sample * samples_per_second / distributed.world_size() / 1e12
        return {"tflops": tflops} | ({"mfu": tflops / self._peak} if self._peak else {})
