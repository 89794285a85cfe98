"""``run.compile``: the repeated layers of a model become compiled code.

Layers of one kind share what is compiled for the first of them, so the time to compile does not
grow with the depth; and what lies between layers (masks, packing, what processes exchange) stays
ordinary Python. It is the `forward` of a layer that is compiled, not its call: hooks, such as those
of FSDP, stay outside, and no parameter changes its name.

Code is compiled for one shape. Texts are therefore padded to multiples of `PAD_TO`: 8 is what
attention kernels and tensor cores ask for in half precision, and leaves four lengths of captions.
The first batches of each length pay for it; what is compiled also stays on disk (inductor's cache).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lavislite.common.errors import TrainingError
from lavislite.common.logging import get_logger, warn_once
from lavislite.common.schema import RunConfig
from lavislite.runners.blocks import blocks_of, towers_of

logger = get_logger(__name__)

PAD_TO = 8
_BACKEND = "inductor"
# All layers of a class share one function: as many pieces as there are kinds of call (a dozen in
# the Q-Former) times lengths, with room to spare. torch's own limits are 8 and 256.
_PIECES, _ALL_PIECES = 128, 1024
_SETTLED = 200  # steps after which nothing new should be compiled


class Compilation:
    """What of a model is compiled, if anything; tells when it does not come to an end."""

    def __init__(self, parts: Sequence[nn.Module] = ()) -> None:
        self.on = bool(parts)
        self._parts = len(parts)
        self._steps = 0
        self._known = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds forward and backward of a step.

        Raises:
            TrainingError: something cannot be compiled.
        """
        if not self.on:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        self._steps += 1
        try:
            yield
        except TorchDynamoException as error:
            why = " ".join(str(error).split("\n\n")[0].split())[:300]
            raise TrainingError(
                f"run.compile: a layer cannot be compiled: {type(error).__name__}: {why} "
                "Set run.compile=false to train without; TORCH_LOGS=dynamo,inductor says more. If "
                "it worked before, what it keeps on disk may be damaged, as by a process that was "
                "killed: set TORCHINDUCTOR_CACHE_DIR to an empty folder."
            ) from error

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, layers compute as if they were not compiled.

        Evaluation has shapes of its own, a new one with every word that is written.
        """
        if not self.on:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def look(self) -> None:
        """Say how much was compiled at first, and warn once if it goes on. The host waits not."""
        if not self.on:
            return
        made = pieces()
        if not self._known:
            logger.info("run.compile: %d pieces of code for %d layers so far", made, self._parts)
        elif made > self._known and self._steps > _SETTLED:
            warn_once(
                logger,
                ("recompilation", id(self)),
                f"run.compile: {made - self._known} more pieces of code were compiled after "
                f"{_SETTLED} steps, because shapes still change; a step in which that happens "
                "takes seconds to minutes. TORCH_LOGS=recompiles says why; run.compile=false "
                "does without.",
            )
        self._known = made


def compile_layers(model: Any, cfg: RunConfig, device: torch.device) -> Compilation:
    """Compile the repeated layers of `model` in place, as ``run.compile`` and its mode say.

    They are the layers of its towers, and what `BaseModel.layers_to_compile` names. With mode
    "reduce-overhead" a frozen tower that gets no gradient is one piece, replayed as a CUDA graph.
    Call it before anything else takes hold of the layers' `forward`.
    """
    if not cfg.compile:
        return Compilation()
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _PIECES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, _ALL_PIECES)
    dynamo.optimize_ddp = False  # DDP's hooks sit between the layers anyway
    if hasattr(model, "pad_texts_to"):
        model.pad_texts_to(PAD_TO)
    mode = _mode(cfg, device)
    whole = _graphed(model, cfg) if mode == "reduce-overhead" else []
    towers = [tower for tower in towers_of(model) if all(tower is not one for one in whole)]
    layers = [block for tower in towers for block in blocks_of(tower)]
    layers += model.layers_to_compile() if hasattr(model, "layers_to_compile") else []
    for tower in whole:
        _compile(tower, "reduce-overhead")
    for layer in layers:
        # Graphs of the others would be recorded for every layer and length.
        _compile(layer, "max-autotune-no-cudagraphs" if mode == "max-autotune" else None)
    if not (whole or layers):
        logger.warning("run.compile: this model names no repeated layers; nothing is compiled")
    return Compilation([*whole, *layers])


def pieces() -> int:
    """So many pieces of code this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _compile(module: nn.Module, mode: str | None) -> None:
    options: Any = {"mode": mode} if _BACKEND == "inductor" else {}
    module.forward = torch.compile(module.forward, dynamic=False, backend=_BACKEND, **options)


def _mode(cfg: RunConfig, device: torch.device) -> str:
    if cfg.compile_mode != "default" and device.type != "cuda":
        logger.info("run.compile_mode: %s is for GPUs; default it is", cfg.compile_mode)
        return "default"
    return cfg.compile_mode


def _graphed(model: Any, cfg: RunConfig) -> list[nn.Module]:
    """The towers that a CUDA graph may replay: FSDP brings their layers together one by one."""
    if cfg.strategy == "fsdp" or not hasattr(model, "graphable_towers"):
        return []
    return list(model.graphable_towers())
