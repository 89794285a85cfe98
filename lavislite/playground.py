"""Makes the playground's own frozen parts when a project wants one that is not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
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

RECIPE = "recipe"  # key in the header of the weights
_NO_MATTER = {
    "device", "eval_at_start", "evaluate", "keep_last", "log_freq", "num_workers", "output_dir",
    "report", "resume", "save_every_steps", "save_freq", "tensorboard", "dist_timeout_minutes",
    "activation_checkpointing", "dist_warn_seconds", "grad_spike", "profile", "save_async",
    "save_every_minutes", "skip_nonfinite", "strategy", "compile", "compile_mode",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A frozen part that one of our projects trains and the cache keeps.

    Attributes:
        what: its name in messages.
        project: the project file that trains it, below ``projects/``.
        place: where its weights are kept.
        wanted: whether a configuration names it.
        save: (trained model, recipe) -> writes it to its place.
        kept: (place) -> the recipe of what is there.
    """

    what: str
    project: str
    place: Callable[[], Path]
    wanted: Callable[[Config], bool]
    save: Callable[[Any, str], None]
    kept: Callable[[Path], str | None]


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


def ensure_playground_parts(cfg: Config, train: Callable[[Config, Path], Any]) -> None:
    """Train the frozen parts that `cfg` names and the cache lacks, each with its own project file.

    `train` runs a configuration to its end and returns the runner. All processes take part; the
    result is kept in the cache, so this happens once per machine.
    """
    for part in PARTS:
        if part.wanted(cfg):
            _ensure(part, cfg, train)


def _ensure(part: Part, cfg: Config, train: Callable[[Config, Path], Any]) -> None:
    project, place = projects_dir() / part.project, part.place()
    options = [
        f"run.output_dir={cache_dir() / 'playground' / 'runs'}",
        f"run.device={cfg.run.device}",
    ]
    own = load_config(project, options)
    if not _missing_somewhere(part, recipe(own)):
        return
    with ExitStack() as stack:
        if distributed.is_local_main():  # two runs started together: the second waits
            stack.enter_context(file_lock(place.with_name(place.name + ".lock")))
        if not _missing_somewhere(part, recipe(own)):
            return
        logger.info(
            "The playground's %s is not trained yet: doing it once, with %s", part.what, project
        )
        _export(part, train(own, project), recipe(own))


def _export(part: Part, runner: Any, fingerprint: str) -> None:
    """Put what `runner` has trained where projects look for it."""
    with runner.whole_model():
        if distributed.is_local_main():
            part.save(runner.model, fingerprint)
        distributed.barrier()


def recipe(cfg: Config) -> str:
    """Fingerprint of all that the trained weights depend on: model, data, schedule.

    Not where it ran, and not what it wrote down on the way.
    """
    options = {key: value for key, value in asdict(cfg.run).items() if key not in _NO_MATTER}
    for key in ("steps_per_epoch", "feature_cache"):
        if options[key] is None:  # as if there were no such option
            del options[key]
    datasets = {name: asdict(options) for name, options in cfg.datasets.items()}
    world = import_module("lavislite.datasets.playground.generate").VERSION
    known = {"model": asdict(cfg.model), "datasets": datasets, "run": options, "world": world}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def keep_result(cfg: Config, project: str | Path, runner: Any) -> None:
    """After a finished run of a playground project: let other projects find what it has trained."""
    builders = [options.builder or name for name, options in cfg.datasets.items()]
    if not all(name.startswith("playground_") for name in builders):
        return  # a project of the user's own may well have the same file name
    part = next((p for p in PARTS if Path(p.project).stem == Path(project).stem), None)
    if part is not None:
        fingerprint = recipe(cfg)
        if fingerprint == recipe(load_config(projects_dir() / part.project)):
            _export(part, runner, fingerprint)
    elif distributed.is_local_main():
        remember_run(project, runner.run_dir)


def _missing_somewhere(part: Part, fingerprint: str) -> bool:
    """No weights of this recipe here, or on another of the run's machines: all processes agree."""
    place = part.place()
    current = place.exists() and part.kept(place) == fingerprint
    return any(distributed.all_gather_objects(not current))


# ------------------------------------------------------------------------------------------- parts


def _vision_place() -> Path:
    return Path(import_module("lavislite.models.vision.tiny").playground_weights())


def _wants_vision(cfg: Config) -> bool:
    vision = getattr(cfg.model, "vision", None)
    if vision is None or vision.name != "tiny":
        return False
    return (vision.weights or vision.options.get("weights", "playground")) == "playground"


def _save_vision(model: Any, fingerprint: str) -> None:
    model.vit.save(_vision_place(), {RECIPE: fingerprint})


def _kept_vision(place: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(place, "pt") as file:
        return (file.metadata() or {}).get(RECIPE)


def _language_place(family: str) -> Path:
    return Path(import_module("lavislite.models.language.tiny").playground_folder(family))


def _wants_language(family: str, cfg: Config) -> bool:
    language = getattr(cfg.model, "language", None)
    return (
        language is not None
        and language.name == f"playground_{family}"
        and language.weights is None
    )


def _save_language(family: str, model: Any, fingerprint: str) -> None:
    model.save(_language_place(family), fingerprint)


def _kept_language(place: Path) -> str | None:
    note = place / "recipe.txt"
    return note.read_text(encoding="utf-8") if note.is_file() else None


def _language(family: str, what: str) -> Part:
    return Part(
        what,
        f"blip2/playground_{family}.yaml",
        partial(_language_place, family),
        partial(_wants_language, family),
        partial(_save_language, family),
        _kept_language,
    )


PARTS = (
    Part(
        "vision tower",
        "blip2/playground_vision.yaml",
        _vision_place,
        _wants_vision,
        _save_vision,
        _kept_vision,
    ),
    _language("opt", "decoder-only language model"),
    _language("t5", "encoder-decoder language model"),
)
