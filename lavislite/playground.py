"""Makes the playground's own vision tower when a project wants it and it is not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from lavislite.common import distributed
from lavislite.common.config import Config, load_config
from lavislite.common.errors import UserError
from lavislite.common.io import cache_dir, file_lock
from lavislite.common.logging import get_logger
from lavislite.common.trained import remember_run

logger = get_logger(__name__)

VISION_PROJECT = "blip2/playground_vision.yaml"
RECIPE = "recipe"  # key in the header of the weights
_NO_MATTER = {
    "device", "eval_at_start", "evaluate", "keep_last", "log_freq", "num_workers", "output_dir",
    "report", "resume", "save_every_steps", "save_freq", "tensorboard", "dist_timeout_minutes",
}  # fmt: skip


def projects_dir() -> Path:
    """The folder of project files: the checkout's, else the installed copy.

    Raises:
        UserError: neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "projects", package / "projects"):
        if (folder / "blip2").is_dir():
            return folder
    raise UserError("The project files are missing: neither a checkout nor an installed copy.")


def ensure_playground_vision(cfg: Config, train: Callable[[Config, Path], Any]) -> None:
    """Train the tiny ViT with its own project file when `cfg` needs it and the cache lacks it.

    `train` runs a configuration to its end and returns the runner. All processes take part; the
    result is kept in the cache, so this happens once per machine.
    """
    if not _wants_playground_vision(cfg):
        return
    weights = _weights()
    project = projects_dir() / VISION_PROJECT
    options = [
        f"run.output_dir={cache_dir() / 'playground' / 'runs'}",
        f"run.device={cfg.run.device}",
    ]
    vision = load_config(project, options)
    if not _missing_somewhere(weights, recipe(vision)):
        return
    with ExitStack() as stack:
        if distributed.is_local_main():  # two runs started together: the second waits
            stack.enter_context(file_lock(weights.with_name(weights.name + ".lock")))
        if not _missing_somewhere(weights, recipe(vision)):
            return
        logger.info(
            "The playground's vision tower is not trained yet: doing it once, with %s", project
        )
        export_vision(train(vision, project), recipe(vision))


def export_vision(runner: Any, fingerprint: str) -> None:
    """Put the tiny ViT that `runner` has trained where projects look for it."""
    if distributed.is_local_main():
        runner.model.vit.save(_weights(), {RECIPE: fingerprint})
    distributed.barrier()


def recipe(cfg: Config) -> str:
    """Fingerprint of all that the trained weights depend on: model, data, schedule.

    Not where it ran, and not what it wrote down on the way.
    """
    options = {key: value for key, value in asdict(cfg.run).items() if key not in _NO_MATTER}
    datasets = {name: asdict(options) for name, options in cfg.datasets.items()}
    world = import_module("lavislite.datasets.playground.generate").VERSION
    known = {"model": asdict(cfg.model), "datasets": datasets, "run": options, "world": world}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def keep_result(cfg: Config, project: str | Path, runner: Any) -> None:
    """After a finished run of a playground project: let other projects find what it has trained."""
    builders = [options.builder or name for name, options in cfg.datasets.items()]
    if not all(name.startswith("playground_") for name in builders):
        return  # a project of the user's own may well have the same file name
    if Path(project).stem == Path(VISION_PROJECT).stem:
        fingerprint = recipe(cfg)
        if fingerprint == recipe(load_config(projects_dir() / VISION_PROJECT)):
            export_vision(runner, fingerprint)
    elif distributed.is_local_main():
        remember_run(project, runner.run_dir)


def _weights() -> Path:
    return Path(import_module("lavislite.models.vision.tiny").playground_weights())


def _wants_playground_vision(cfg: Config) -> bool:
    vision = getattr(cfg.model, "vision", None)
    if vision is None or vision.name != "tiny":
        return False
    return (vision.weights or vision.options.get("weights", "playground")) == "playground"


def _missing_somewhere(weights: Path, fingerprint: str) -> bool:
    """No weights of this recipe here, or on another of the run's machines: all processes agree."""
    from safetensors import safe_open

    current = False
    if weights.exists():
        with safe_open(weights, "pt") as file:
            current = (file.metadata() or {}).get(RECIPE) == fingerprint
    return any(distributed.all_gather_objects(not current))
