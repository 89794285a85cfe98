"""What can be known to be wrong before any expensive work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lavislite.common import catalog
from lavislite.common.config import Config
from lavislite.common.errors import ConfigError
from lavislite.common.logging import get_logger
from lavislite.common.registry import did_you_mean

logger = get_logger(__name__)


def check_config(cfg: Config) -> None:
    """Names, device and number format.

    Raises:
        UserError: a name nobody registered, or a format or device that this machine lacks.
    """
    from lavislite.common.distributed import resolve_device
    from lavislite.runners.optim import resolve_precision

    check_names(cfg)
    check_values(cfg)
    resolve_precision(cfg.run.precision, resolve_device(cfg.run.device))


def check_names(cfg: Config) -> None:
    """Every component that `cfg` names is registered.

    Raises:
        UnknownNameError: one is not; the nearest is offered.
    """
    catalog.runners.get(cfg.run.runner, "run.runner")
    catalog.lr_schedules.get(cfg.run.lr_sched, "run.lr_sched")
    vision = getattr(cfg.model, "vision", None)
    name = getattr(vision, "name", None)
    if isinstance(name, str) and name.split(":", 1)[0] not in catalog.vision_backbones:
        catalog.vision_backbones.get(name, "model.vision.name")
    for dataset, place, processor in processors(cfg):
        if "name" in processor:
            key = f"datasets.{dataset}.{place}.name"
            catalog.processors.get(processor["name"], key)


def check_parts(cfg: Config) -> None:
    """What the model is made from is there, as far as a look can tell.

    Raises:
        UserError: it is not, or does not fit.
    """
    look = getattr(catalog.models.get(cfg.model.arch), "look", None)
    if callable(look):
        look(cfg.model)


def check_values(cfg: Config) -> None:
    """Every section that has a `check` method passes it.

    Raises:
        ConfigError: a number is out of its bounds, or two options do not fit each other.
    """
    for section in (cfg.run, cfg.model, *cfg.datasets.values()):
        check = getattr(section, "check", None)
        if callable(check):
            check()


def processors(cfg: Config) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(dataset, phase, options) of every processor in `cfg`."""
    for dataset, options in cfg.datasets.items():
        for kind in ("vis_processor", "text_processor"):
            for phase, processor in (getattr(options, kind, None) or {}).items():
                if isinstance(processor, dict):
                    yield dataset, f"{kind}.{phase}", processor


def check_splits(cfg: Config, has: dict[str, list[str]], *, train: bool = True) -> None:
    """Every split that the run names is in some dataset.

    Raises:
        ConfigError: a split is nowhere (the nearest is offered), or there is nothing to do.
    """
    run = cfg.run
    known = sorted({split for splits in has.values() for split in splits})
    for key in ("train_splits", *_EVALUATED) if train else _EVALUATED:
        for split in getattr(run, key):
            if split not in known:
                listed = "; ".join(
                    f"{name} has {', '.join(s)}" if s else f"datasets.{name}.annotations is empty"
                    for name, s in has.items()
                )
                raise ConfigError(
                    f"run.{key}: no dataset has a split '{split}'.{did_you_mean(split, known)} "
                    f"({listed})"
                )
    if train and not run.train_splits:
        raise ConfigError("run.train_splits is empty: nothing to train on")
    if not train and not (run.valid_splits or run.test_splits):
        raise ConfigError(
            "Nothing to evaluate: run.valid_splits and run.test_splits are empty. "
            f"The datasets have {', '.join(known)}."
        )
    wanted = {*(run.train_splits if train else ()), *run.valid_splits, *run.test_splits}
    for name, splits in has.items():
        if not wanted & set(splits):
            logger.warning("dataset '%s' is not used: it has only %s", name, ", ".join(splits))


_EVALUATED = ("valid_splits", "test_splits")


def check_image_size(cfg: Config, data: Iterable[Any]) -> None:
    """Before the model is built: images have the size that its configuration names.

    Raises:
        ConfigError: they have another; names both keys and what to write.
    """
    for key, wanted in (
        (
            "model.vision.image_size",
            getattr(getattr(cfg.model, "vision", None), "image_size", None),
        ),
        ("model.image_size", getattr(cfg.model, "image_size", None)),
    ):
        for where, processor in _image_processors(data):
            seen = getattr(processor, "image_size", None)
            if wanted is not None and seen is not None and _square(seen) != _square(wanted):
                raise ConfigError(
                    f"{where} makes {seen} pixels, {key} is {wanted}. Write image_size: {wanted} "
                    f"in the processor, or {key}={seen}."
                )


def check_statistics(cfg: Config, data: Iterable[Any], model: Any) -> None:
    """Images are normalised with the mean and deviation that the vision backbone was trained with.

    Raises:
        ConfigError: others are; names the dataset, both values and what to write.
    """
    backbone = getattr(model, "visual_encoder", None)
    name = getattr(getattr(cfg.model, "vision", None), "name", type(backbone).__name__)
    for where, processor in _image_processors(data):
        for ours, key in (("image_mean", "mean"), ("image_std", "std")):
            wanted, seen = getattr(backbone, ours, None), getattr(processor, key, None)
            if wanted is not None and seen is not None and not _close(wanted, seen):
                raise ConfigError(
                    f"{where} normalises with {key} {_short(seen)}, model.vision '{name}' was "
                    f"trained with {_short(wanted)}. Write {key}: {_short(wanted)} in the "
                    "processor."
                )


def _image_processors(data: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for dataset in data:
        processor = getattr(dataset, "vis_processor", None)
        if processor is not None:
            yield f"datasets.{dataset.name}.vis_processor (split '{dataset.split}')", processor


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _close(a: Iterable[float], b: Iterable[float]) -> bool:
    return all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))


def _short(values: Iterable[float]) -> list[float]:
    return [round(float(value), 4) for value in values]
