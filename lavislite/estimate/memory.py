"""What one process needs of its GPU, by strategy."""

from __future__ import annotations

from dataclasses import dataclass

from lavislite.estimate.sizes import Sizes
from lavislite.estimate.step import Step

GIB = 2**30
STRATEGIES = ("single", "ddp", "fsdp")
CHECKPOINTING = ("none", "recompute", "offload")
# Beside what the step holds: the context of CUDA and its libraries, what NCCL keeps, and what the
# allocator has in pieces too small to use.
CONTEXT = int(1.0 * GIB)
NCCL = int(0.7 * GIB)
FRAGMENTS = 0.05
# FSDP holds the layer that computes, the next on its way, and that one as it is put in place.
LAYERS_AT_ONCE = 3


@dataclass(frozen=True)
class Memory:
    """Bytes per process at the worst moment of a step.

    Attributes:
        weights: in the types they are stored in, as far as this process holds them.
        gradients: of what is trained. optimizer: AdamW's two moments.
        activations: what the backward pass needs, and what is computed just then.
        gathered: layers brought together to compute with (fsdp).
        reserve: CUDA, NCCL and fragments; an assumption.
        host: in the machine's memory, of this process (offload).
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    reserve: int
    host: int = 0

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.gathered
            + self.reserve
        )


def memory(strategy: str, sizes: Sizes, step: Step, *, world: int, accumulate: int = 1) -> Memory:
    """What `step` takes under `strategy` on each of `world` processes.

    Args:
        accumulate: with several micro-batches in a step gradients are there from the second on.
    """
    if strategy == "fsdp":
        parts = _in_parts(sizes, step, world, accumulate)
    else:
        # DDP's gradients are views of its buckets, which stay.
        kept = strategy == "ddp" or accumulate > 1
        busy = step.activations if kept else max(step.peak - sizes.trained, 0)
        parts = Memory(sizes.weights, sizes.trained, 2 * sizes.trained, busy, 0, 0)
    reserve = CONTEXT + (NCCL if world > 1 else 0) + int(FRAGMENTS * parts.activations)
    return Memory(
        parts.weights,
        parts.gradients,
        parts.optimizer,
        parts.activations,
        parts.gathered,
        reserve,
        host=step.offloaded,
    )


def _in_parts(sizes: Sizes, step: Step, world: int, accumulate: int) -> Memory:
    divided = sizes.frozen_layers + sizes.trained
    gradients = sizes.trained_layers // world + sizes.trained_rest
    busy = step.activations if accumulate > 1 else max(step.peak_sharded - sizes.trained_rest, 0)
    # At the end the gradients are copied to be sent, when the activations are gone.
    busy = max(busy, sizes.trained_rest)
    return Memory(
        weights=sizes.frozen_rest + divided // world,
        gradients=gradients,
        optimizer=2 * sizes.trained // world,
        activations=busy,
        gathered=LAYERS_AT_ONCE * sizes.largest_layer + sizes.trained_rest,
        reserve=0,
    )


def traffic(strategy: str, sizes: Sizes, *, world: int) -> int:
    """Bytes that a process receives in a step for weights and gradients."""
    if world == 1 or strategy == "single":
        return 0
    share = (world - 1) / world
    if strategy == "ddp":
        return int(2 * sizes.trained * share)
    forward = sizes.frozen_layers + sizes.trained
    backward = sizes.backward_layers + sizes.trained_layers + sizes.trained  # and the gradients
    return int((forward + backward) * share)


def largest_batch(
    strategy: str, sizes: Sizes, steps: tuple[Step, Step], room: int, *, world: int, accumulate: int
) -> int:
    """About how many samples per process fit into `room` bytes: memory grows linearly with them.

    Args:
        steps: of two batch sizes.
    """
    small, large = (
        memory(strategy, sizes, step, world=world, accumulate=accumulate).total for step in steps
    )
    per_sample = (large - small) / (steps[1].batch - steps[0].batch)
    if per_sample <= 0:
        return 0
    return max(int(steps[0].batch + (room - small) / per_sample), 0)
