"""Counts what a step computes and what memory it holds, from the operations themselves."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Ledger(TorchDispatchMode):
    """Follows every operation inside: its FLOPs, and which storages live how long.

    No numbers are drawn, so generators, which fake tensors cannot have, are left out.

    Args:
        standing: tensors that are there before and after (weights), which do not count.

    Attributes:
        part: what FLOPs are booked under; set it as the step goes on.
        flops: part -> floating-point operations of matrix products, convolutions and attention.
        activations: most bytes alive at one time, gradients of parameters not counted.
        peak: the same with the gradients that were there at that time.
        peak_sharded: the same with those gradients that are not of sharded parameters.
    """

    def __init__(self, standing: Iterable[Tensor]) -> None:
        super().__init__()
        self._standing = {id(s): s for s in (t.untyped_storage() for t in standing)}
        self._sizes: dict[int, int] = {}  # of living storages
        self._refs: dict[int, weakref.ref[Any]] = {}
        self._live = self._gradients = self._sharded = 0
        self.part = "other"
        self.flops: Counter[str] = Counter()
        self.activations = self.peak = self.peak_sharded = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls
            return func(*args)
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "generator"}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops[self.part] += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        self._note_peak()
        return out

    def book_gradient(self, parameter: Tensor, *, sharded: bool) -> None:
        """The gradient of `parameter` is whole: it counts as such until it is gone."""
        assert parameter.grad is not None
        key = id(parameter.grad.untyped_storage())
        if key in self._sizes:
            self._live -= self._sizes[key]
            self._gradients += self._sizes[key]
            self._sharded += self._sizes[key] if sharded else 0
            self._sizes[key] = 0  # it stays until the end of the step
        self._note_peak()

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes or key in self._standing:
            return
        self._sizes[key] = storage.nbytes()
        self._live += storage.nbytes()
        self._refs[key] = weakref.ref(storage, lambda _: self._leave(key))

    def _leave(self, key: int) -> None:
        self._live -= self._sizes.pop(key)
        del self._refs[key]

    def _note_peak(self) -> None:
        self.activations = max(self.activations, self._live)
        self.peak = max(self.peak, self._live + self._gradients)
        whole = self._live + self._gradients - self._sharded
        self.peak_sharded = max(self.peak_sharded, whole)
