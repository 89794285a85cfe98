"""The only composer: a resolved configuration to datasets, model, task and runner."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavislite.checks import (
    check_config,
    check_image_size,
    check_parts,
    check_splits,
    check_statistics,
)
from lavislite.common import catalog, distributed
from lavislite.common.config import Config
from lavislite.common.errors import ConfigError, UserError
from lavislite.common.logging import get_logger
from lavislite.common.together import on_each_machine, on_main
from lavislite.common.transfer import fetch
from lavislite.playground import ensure_playground_parts
from lavislite.run_dir import (
    LaunchRecord,
    create_run_dir,
    find_begun,
    find_resume,
    mark_latest,
    require_writable,
    scratch_dir,
)

logger = get_logger(__name__)

TOKENIZER = "tokenizer"  # folder of a run that holds its vocabulary


@dataclass
class Data:
    """The splits of a run."""

    train: dict[str, list[Any]] = field(default_factory=dict)  # dataset name -> training splits
    evaluated: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> split -> Dataset

    def captions(self) -> Iterator[str]:
        """All training texts, in order."""
        for parts in self.train.values():
            for part in parts:
                yield from part.captions()

    def __iter__(self) -> Iterator[Any]:
        for parts in self.train.values():
            yield from parts
        for splits in self.evaluated.values():
            yield from splits.values()


def build_runner(
    cfg: Config,
    *,
    project: str | Path = "run",
    train: bool = True,
    dry_run: bool = False,
    checkpoint: str | Path | None = None,
) -> Any:
    """Everything a run needs, built in the order in which mistakes are cheap.

    Args:
        project: the project file; its stem names the folder under ``run.output_dir``.
        train: False builds no training split (evaluation only).
        dry_run: leave nothing behind: the run's files go to a temporary folder.
        checkpoint: to evaluate: a run folder (its best, else its last), a checkpoint folder, or a
            file or URL with weights.

    Raises:
        UserError: the first thing that cannot work, before any expensive work.
    """
    check_config(cfg)
    launch = LaunchRecord.of(cfg, os.environ)
    name = Path(project).name
    stem = name.removesuffix(".yaml").removesuffix(".yml")  # a dot elsewhere belongs to the name
    if checkpoint is not None:
        _use_checkpoint(cfg, checkpoint)
    check_parts(cfg)
    if not dry_run:
        on_main(lambda: require_writable(Path(cfg.run.output_dir)))
    begun = on_main(lambda: find_begun(cfg.run, stem, launch)) if train and not dry_run else None
    resumed = begun or on_main(lambda: find_resume(cfg.run, stem))
    run = cfg.run
    if begun is not None:
        logger.info("This launch has been here before: continuing in %s", begun)
        run = replace(cfg.run, resume=launch.resume(begun, cfg.run.resume))
    task = build_task(cfg)
    data = build_data(cfg, train=train)
    cached = with_feature_cache(cfg, data)
    check_image_size(cfg, data)
    loader = build_loader(cfg, data) if train else None
    ensure_playground_parts(cfg, train_project)
    if resumed is None or dry_run or not train:
        make = scratch_dir if dry_run else lambda: create_run_dir(cfg, stem, train)
        run_dir, new = on_main(make), True
    else:
        run_dir, new = resumed, False
    if train and not dry_run and begun is None:
        on_main(lambda: launch.write(run_dir))
    with _removed_on_failure(run_dir if new else None):
        has_vocabulary = resumed is not None and (resumed / TOKENIZER).is_dir()
        vocabulary = resumed if has_vocabulary else None
        model = build_model(cfg, captions=Lazily(data.captions), vocabulary=vocabulary)
        check_statistics(cfg, data, model)
        if cached:
            from lavislite.features.cache import use_feature_cache

            use_feature_cache(cached, model, cfg.model.vision, run, dry_run=dry_run)
        _save_vocabulary(model, run_dir)
        if loader is not None and hasattr(model, "text_preparer"):
            loader.prepare = model.text_preparer()  # texts become tokens where batches are loaded
        runner = catalog.runners.get(cfg.run.runner)(
            run,
            task=task,
            model=model,
            datasets=data.evaluated,
            train_data=loader,
            run_dir=run_dir,
            config_yaml=cfg.to_yaml(),
        )
    if train and not dry_run:  # `latest` is what evaluation is pointed at
        on_main(lambda: mark_latest(run_dir))
    return runner


def train_project(cfg: Config, project: Path) -> Any:
    """Train `cfg` to the end and return its runner."""
    runner = build_runner(cfg, project=project)
    runner.train()
    return runner


def _use_checkpoint(cfg: Config, checkpoint: str | Path) -> None:
    """Evaluate a training checkpoint through ``run.resume``, other weights as `pretrained`."""
    from lavislite.models.blip2.weights import checkpoint_in

    found = fetch(checkpoint)
    if found.suffix in (".yaml", ".yml"):
        raise UserError(f"--checkpoint: {checkpoint} holds no weights; name its folder")
    path = checkpoint_in(found)
    if (path / "meta.json").is_file():
        cfg.run.resume = str(path)
    elif hasattr(cfg.model, "pretrained"):
        cfg.run.resume, cfg.model.pretrained = None, str(checkpoint)
    else:
        raise UserError(f"--checkpoint: {checkpoint} is not a run or checkpoint folder")


# ------------------------------------------------------------------------------------------- parts


def build_task(cfg: Config) -> Any:
    """The task named by ``run.task``."""
    return catalog.tasks.get(cfg.run.task)(cfg.run)


def build_model(
    cfg: Config, captions: Iterable[str] | None = None, vocabulary: Path | None = None
) -> Any:
    """The model of `cfg`, reproducible from ``run.seed``.

    Args:
        captions: training texts, for a tokenizer that is made from data; read only when needed.
        vocabulary: the run folder that training goes on in: its tokenizer is used again.
    """
    target = catalog.models.get(cfg.model.arch)
    distributed.seed_everything(cfg.run.seed)
    parts: dict[str, Any] = {} if captions is None else {"captions": captions}
    reads = getattr(cfg.model, "qformer_text_input", True)  # stage 2 does when asked to
    if reads and getattr(cfg.model, "tokenizer", None) in ("auto", "from_data"):
        from lavislite.models.blip2.text import build_tokenizer
        from lavislite.models.blip2.weights import run_tokenizer

        kept = run_tokenizer(vocabulary or cfg.model.pretrained)
        if kept is not None:  # the weights know these ids, whatever the captions are now
            parts["tokenizer"] = build_tokenizer(kept)
    return target.from_config(cfg.model, **_accepted(target.from_config, parts))


def _accepted(function: Callable[..., Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Of the parts on offer those that `function` takes: a model of your own may need none."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return parts
    return {name: part for name, part in parts.items() if name in {p.name for p in parameters}}


def _save_vocabulary(model: Any, run_dir: Path) -> None:
    """Keep the tokenizer with the run: one made from data exists nowhere else."""
    if getattr(model, "tokenizer", None) is not None:
        from lavislite.models.blip2.text import save_tokenizer

        save_tokenizer(model.tokenizer, run_dir / TOKENIZER)


def make_builder(name: str, cfg: Any) -> Any:
    """The builder of the dataset called `name` in the project."""
    return catalog.datasets.get(cfg.builder or name)(cfg, name=name)


def build_data(cfg: Config, *, train: bool = True) -> Data:
    """The splits that the run names, for every dataset that has them.

    Training splits get the processors' training side, validation and test splits the other.
    A dataset with ``ratio: 0`` is evaluated but not trained on.

    Raises:
        ConfigError: no dataset has a split that is asked for.
    """
    if not cfg.datasets:
        raise ConfigError("datasets: is empty; name at least one dataset")
    builders = {name: make_builder(name, options) for name, options in cfg.datasets.items()}
    on_each_machine(lambda: [builder.prepare() for builder in builders.values()])
    has = {name: builder.splits() for name, builder in builders.items()}
    check_splits(cfg, has, train=train)
    data = Data()
    for name, builder in builders.items():
        trained = cfg.run.train_splits if train and cfg.datasets[name].ratio != 0 else []
        evaluated = dict.fromkeys([*cfg.run.valid_splits, *cfg.run.test_splits])
        data.train[name] = [builder.build(s, train=True) for s in trained if s in has[name]]
        data.evaluated[name] = {
            s: builder.build(s, train=False) for s in evaluated if s in has[name]
        }
    return data


def with_feature_cache(cfg: Config, data: Data) -> list[Any]:
    """The training splits, as ones that can read stored features, where the run asks for that.

    Raises:
        ConfigError: the model's tower trains, or a data set cannot do it.
    """
    if cfg.run.feature_cache is None or not any(data.train.values()):
        return []
    from lavislite.features.cache import check_tower
    from lavislite.features.splits import CachedSplit

    check_tower(cfg.model)
    data.train = {name: [CachedSplit(p) for p in parts] for name, parts in data.train.items()}
    return [part for parts in data.train.values() for part in parts]


def build_loader(cfg: Config, data: Data) -> Any:
    """The training batches of all datasets together, mixed by their ``ratio``."""
    from lavislite.datasets.loading import TrainLoader

    named = [(name, part) for name, parts in data.train.items() for part in parts]
    steps = cfg.run.steps_per_epoch
    return TrainLoader(
        [part for _, part in named],
        [cfg.datasets[name].ratio for name, _ in named],
        batch_size=cfg.run.batch_size_train,
        num_workers=cfg.run.num_workers,
        batches_per_epoch=None if steps is None else steps * cfg.run.accum_grad_iters,
        seed=cfg.run.seed,
    )


class Lazily:
    """Iterates over what `make` returns, afresh each time; makes nothing until then."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


@contextmanager
def _removed_on_failure(run_dir: Path | None) -> Iterator[None]:
    """Leave no folder of a run that never began."""
    try:
        yield
    except BaseException:
        if run_dir is not None and distributed.is_main():
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
