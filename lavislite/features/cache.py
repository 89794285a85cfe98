"""`run.feature_cache`: training splits read stored features, which are computed where missing."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, UserError
from lavislite.common.io import cache_dir
from lavislite.common.schema import RunConfig
from lavislite.features import identity
from lavislite.features.plan import Alike, make_plan
from lavislite.features.space import agree
from lavislite.features.splits import CachedSplit


def check_tower(model_cfg: Any) -> None:
    """Before the model is built: it will have a frozen vision tower.

    Raises:
        ConfigError: it will not.
    """
    frozen = getattr(getattr(model_cfg, "vision", None), "freeze", None)
    if frozen is None:
        raise ConfigError(
            f"run.feature_cache: the model '{model_cfg.arch}' has no frozen vision tower whose "
            "features could be kept. Leave the option out."
        )
    if not frozen:
        raise ConfigError(
            "run.feature_cache: model.vision.freeze is false, and the features of a tower that "
            "trains change at every step. Write model.vision.freeze: true, or leave the cache out."
        )


def use_feature_cache(
    splits: Sequence[CachedSplit], model: Any, vision: Any, run: RunConfig, *, dry_run: bool
) -> None:
    """Let `splits` read features of the model's tower; compute and store those that are missing.

    All processes take part. Call it once the model holds its weights, before training begins.

    Args:
        vision: the options of the tower, a dataclass.
        dry_run: only say how much it would be; the splits go on reading pictures.

    Raises:
        UserError: no frozen tower, no room, more than `max_gb` and nobody agreed.
    """
    options = run.feature_cache
    if options is None or not splits:
        return
    if not getattr(model, "vision_is_frozen", False) or not hasattr(model, "tower_features"):
        raise ConfigError(
            f"run.feature_cache: {type(model).__name__} has no frozen vision tower whose features "
            "could be kept. Leave the option out."
        )
    root = _made(Path(options.folder).expanduser() if options.folder else cache_dir() / "features")
    near = _processes_at(root)
    with _ready(model, run) as device:
        plans = [make_plan(part, model, vision, run, root, device) for part in _alike(splits, run)]
        for plan in plans:
            plan.say(dry_run)
        if dry_run:
            return
        needs = [plan.need() for plan in plans]
        agree(options.max_gb, needs, looks=near[0] == distributed.rank())
        for plan in plans:
            plan.carry_out(model, run, near)


# ------------------------------------------------------------------------------------------- parts


def _alike(splits: Sequence[CachedSplit], run: RunConfig) -> list[Alike]:
    """`splits` by their processors; the seed is part of those that draw at random.

    Raises:
        ConfigError: views are asked for of one that makes the same of a picture each time.
    """
    assert run.feature_cache is not None
    found: dict[str, Alike] = {}
    for split in splits:
        where = f"datasets.{split.name}.vis_processor (split '{split.split}')"
        facts, random, example = identity.of_processor(split.vis_processor, where)
        if run.feature_cache.views > 1 and not random:
            raise ConfigError(
                f"run.feature_cache.views: {run.feature_cache.views}, but {where} makes the same "
                "of a picture each time. Write views: 1, or choose one that augments."
            )
        facts = distributed.broadcast_object({**facts, **({"seed": run.seed} if random else {})})
        entry = Alike(facts, [], example)
        found.setdefault(json.dumps(facts, sort_keys=True), entry).splits.append(split)
    return list(found.values())


@contextmanager
def _ready(model: Any, run: RunConfig) -> Iterator[torch.device]:
    """The model on the run's device without gradients; random states come back."""
    device, before = distributed.resolve_device(run.device), model.device
    state = distributed.rng_state()
    model.to(device)
    try:
        with torch.no_grad():
            yield device
    finally:
        distributed.set_rng_state(state)
        if run.strategy == "fsdp":  # it goes to the device part by part
            model.to(before)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run.feature_cache.folder: {folder} cannot be made: {error.strerror}."
        ) from error
    return folder


def _processes_at(folder: Path) -> list[int]:
    """The ranks that see the same `folder`: all where it is shared, else those of one machine."""
    if not distributed.is_distributed():
        return [0]
    token = distributed.broadcast_object(secrets.token_hex(4))
    own = folder / f".{token}-{distributed.rank()}"
    own.touch()
    distributed.barrier()
    seen = {int(path.name.rpartition("-")[2]) for path in folder.glob(f".{token}-*")}
    everyone = distributed.all_gather_objects(seen)
    own.unlink()
    # A file server may show a new file to some a little later: who sees one of us belongs to us.
    return sorted({r for r, others in enumerate(everyone) if others & seen})
