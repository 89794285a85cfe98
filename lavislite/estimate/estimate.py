"""From a project file and a number of GPUs to parameters, operations, memory and hours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lavislite.build import build_task
from lavislite.checks import check_names, check_values
from lavislite.common.config import Config
from lavislite.common.errors import ConfigError
from lavislite.estimate.blueprint import build_blueprint
from lavislite.estimate.gpus import Gpu
from lavislite.estimate.length import total_steps
from lavislite.estimate.memory import CHECKPOINTING, GIB, Memory, largest_batch, memory, traffic
from lavislite.estimate.sizes import Sizes, sizes_of
from lavislite.estimate.step import Simulator, Step
from lavislite.runners.blocks import checkpoint_activations
from lavislite.runners.optim import PRECISIONS

MFU = 0.3  # of the peak; what is computed again counts as work


@dataclass(frozen=True)
class Way:
    """One strategy with one way to keep activations.

    Attributes:
        largest: samples per process that about fit.
        flops: of a whole step, all processes together.
        seconds: of a step, computation alone. hours: of the run; None when its length is unknown.
        traffic: bytes that a process receives in a step.
    """

    strategy: str
    checkpointing: str
    memory: Memory
    fits: bool
    largest: int
    flops: int
    seconds: float
    hours: float | None
    traffic: int


@dataclass(frozen=True)
class Estimate:
    """What a recipe needs; `to_dict` for machines, `report.lines` for people.

    asked: the strategy and the checkpointing that the recipe itself names.
    """

    arch: str
    towers: dict[str, str]
    precision: str
    gpus: int
    gpu: Gpu
    mfu: float
    batch: int
    accumulate: int
    steps: int | None
    sizes: Sizes
    step: Step
    ways: list[Way]
    asked: tuple[str, str]
    notes: list[str]

    @property
    def whole_batch(self) -> int:
        return self.batch * self.accumulate * self.gpus

    def way(self, strategy: str, checkpointing: str) -> Way:
        """The one called so; it must be there."""
        both = (strategy, checkpointing)
        return next(w for w in self.ways if (w.strategy, w.checkpointing) == both)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; memory in GiB, operations in FLOP."""
        return {
            "arch": self.arch,
            "towers": self.towers,
            "precision": self.precision,
            "gpus": self.gpus,
            "gpu": asdict(self.gpu),
            "mfu": self.mfu,
            "batch_per_gpu": self.batch,
            "accumulate": self.accumulate,
            "batch": self.whole_batch,
            "steps": self.steps,
            "parameters": {
                part: {"all": every, "trained": trained}
                for part, (every, trained) in self.sizes.parameters.items()
            },
            "flops_per_sample": {k: v / self.batch for k, v in self.step.flops.items()},
            "asked": dict(zip(("strategy", "activation_checkpointing"), self.asked, strict=True)),
            "ways": [_way_dict(way) for way in self.ways],
            "notes": self.notes,
        }


def _way_dict(way: Way) -> dict[str, Any]:
    held = {k: round(v / GIB, 3) for k, v in asdict(way.memory).items()}
    return {
        "strategy": way.strategy,
        "activation_checkpointing": way.checkpointing,
        "memory_gib": {**held, "total": round(way.memory.total / GIB, 3)},
        "fits": way.fits,
        "largest_batch_per_gpu": way.largest,
        "flops_per_step": way.flops,
        "seconds_per_step": round(way.seconds, 4),
        "hours": None if way.hours is None else round(way.hours, 2),
        "received_gib_per_step": round(way.traffic / GIB, 3),
    }


def estimate(
    cfg: Config, *, gpus: int, gpu: Gpu, mfu: float = MFU, samples: int | None = None
) -> Estimate:
    """What training `cfg` on `gpus` GPUs needs. Reads no data and no weights, starts nothing.

    Args:
        mfu: assumed part of the GPU's peak.
        samples: training samples of an epoch, when the recipe counts epochs of data of its own.

    Raises:
        UserError: the recipe is wrong, trains nothing, or has a part that is not known.
    """
    check_names(cfg)
    check_values(cfg)
    if cfg.run.evaluate:
        raise ConfigError("run.evaluate is set: the recipe trains nothing to estimate.")
    precision = gpu.precision if cfg.run.precision == "auto" else cfg.run.precision
    if precision not in PRECISIONS:
        raise ConfigError(
            f"run.precision: '{precision}' is unknown. Known: auto, {', '.join(PRECISIONS)}."
        )
    notes: list[str] = []
    model = build_blueprint(cfg, gpu.precision, notes)
    sizes = sizes_of(model)
    steps = total_steps(cfg, gpus, samples, notes)
    simulated = simulate(cfg, model, precision, sizes, gpus)
    ways = [
        _way(strategy, mode, cfg, sizes, simulated[mode], gpus, gpu, mfu, steps)
        for strategy in (("ddp", "fsdp") if gpus > 1 else ("single",))
        for mode in CHECKPOINTING
    ]
    parts = {"vision": cfg.model.vision.name}
    if hasattr(cfg.model, "language"):
        parts["language"] = cfg.model.language.name
    return Estimate(
        arch=cfg.model.arch,
        towers=parts,
        precision=precision,
        gpus=gpus,
        gpu=gpu,
        mfu=mfu,
        batch=cfg.run.batch_size_train,
        accumulate=cfg.run.accum_grad_iters,
        steps=steps,
        sizes=sizes,
        step=simulated["none"][0],
        ways=ways,
        asked=(_strategy(cfg.run.strategy, gpus), cfg.run.activation_checkpointing),
        notes=notes,
    )


def _strategy(name: str, gpus: int) -> str:
    """What ``auto`` means for so many processes."""
    return ("ddp" if gpus > 1 else "single") if name == "auto" else name


def simulate(
    cfg: Config, model: Any, precision: str, sizes: Sizes, world: int
) -> dict[str, tuple[Step, Step]]:
    """For each kind of checkpointing a step with the recipe's batch, and one with twice as many."""
    simulator = Simulator(model, build_task(cfg), precision=precision, sharded=sizes.sharded)
    batch = cfg.run.batch_size_train
    found = {"none": (simulator(batch, world), simulator(2 * batch, world))}
    checkpoint_activations(model, "recompute")
    again = (simulator(batch, world), simulator(2 * batch, world))
    found["recompute"] = again
    found["offload"] = (again[0].with_offloading(), again[1].with_offloading())
    return found


def _way(
    strategy: str,
    mode: str,
    cfg: Config,
    sizes: Sizes,
    simulated: tuple[Step, Step],
    world: int,
    gpu: Gpu,
    mfu: float,
    steps: int | None,
) -> Way:
    accumulate = cfg.run.accum_grad_iters
    needed = memory(strategy, sizes, simulated[0], world=world, accumulate=accumulate)
    room = int(gpu.memory_gib * GIB)
    flops = simulated[0].all_flops * accumulate
    seconds = flops / (gpu.tflops * 1e12 * mfu)
    return Way(
        strategy=strategy,
        checkpointing=mode,
        memory=needed,
        fits=needed.total <= room,
        largest=largest_batch(strategy, sizes, simulated, room, world=world, accumulate=accumulate),
        flops=flops * world,
        seconds=seconds,
        hours=None if steps is None else steps * seconds / 3600,
        traffic=traffic(strategy, sizes, world=world),
    )
