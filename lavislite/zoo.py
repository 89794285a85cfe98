"""The public calls, as LAVIS spells them: models, processors and datasets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavislite.common import catalog
from lavislite.common.config import resolve, resolve_dataset
from lavislite.common.errors import ConfigError
from lavislite.common.layers import read_yaml
from lavislite.common.packaged import packaged_defaults, packaged_types
from lavislite.common.registry import did_you_mean
from lavislite.common.trained import last_run, saved_config
from lavislite.common.transfer import fetch

if TYPE_CHECKING:
    import torch
    from torch import nn

Processors = dict[str, Callable[[Any], Any]]


def load_model(
    name: str,
    model_type: str | None = None,
    is_eval: bool = True,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """The model `name`, with the weights of `model_type` or those of `checkpoint`.

    Args:
        name: an architecture, see `model_zoo`.
        model_type: one of its published variants; None is `checkpoint`'s own model when that is a
            run of such a model, else the first of them.
        is_eval: evaluation mode, in float32 on the CPU.
        checkpoint: a run folder, a file or a URL to load instead of the published weights.

    Raises:
        UnknownNameError: no such model. ConfigError: no such type. CheckpointError: the weights are
            missing or do not fit.
    """
    import torch

    from lavislite.build import build_model

    catalog.models.get(name)
    cfg = resolve(_project(name, model_type, checkpoint), origin="load_model")
    model = build_model(cfg)
    where = torch.device(device)
    if is_eval:
        model.eval()
        if where.type == "cpu":
            model.float()
    return model.to(where)


def load_model_and_preprocess(
    name: str,
    model_type: str | None = None,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, Processors, Processors]:
    """`load_model` and its processors: ``vis["eval"](image)``, ``txt["eval"](text)``."""
    model = load_model(name, model_type, is_eval, device, checkpoint)
    if model_type is None and (saved := _run_of(checkpoint)) is not None:
        return model, *load_preprocess(_processors(saved))
    chosen = _model_type(name, model_type)
    packaged = packaged_defaults("models", name, chosen) if chosen is not None else {}
    return model, *load_preprocess(packaged.get("preprocess", {}))


def load_preprocess(config: Mapping[str, Any]) -> tuple[Processors, Processors]:
    """(image, text) processors of a `preprocess:` section, each ``{"train": ..., "eval": ...}``."""
    from lavislite.processors import build_processor

    vis, txt = (
        {phase: build_processor(dict(cfg)) for phase, cfg in (config.get(kind) or {}).items()}
        for kind in ("vis_processor", "text_processor")
    )
    return vis, txt


def load_dataset(
    name: str,
    cfg_path: str | Path | None = None,
    vis_path: str | Path | None = None,
    data_type: str | None = None,
    type: str = "default",
) -> dict[str, Any]:
    """Every split of the dataset `name`, as ``{"train": Dataset, ...}``.

    Args:
        cfg_path: a YAML file with the dataset's options, plain or under ``datasets: {name: ...}``.
        vis_path: folder of the images.
        data_type: accepted for LAVIS's sake; only "images" exists.
        type: packaged variant of the dataset.
    """
    from lavislite.build import make_builder

    if data_type not in (None, "images"):
        raise ConfigError(f"data_type: expected 'images', saw '{data_type}'")
    catalog.datasets.get(name)
    options = read_yaml(cfg_path) if cfg_path is not None else {}
    sections = options.get("datasets", {name: options})
    if name not in sections:
        raise ConfigError(f"{cfg_path}: no datasets.{name}.{did_you_mean(name, sections)}")
    options = sections[name] or {}
    if vis_path is not None:
        options = {**options, "images": str(vis_path)}
    cfg = resolve_dataset(name, {"type": type, **options}, origin=str(cfg_path or name))
    builder = make_builder(name, cfg)
    builder.prepare()
    return {split: builder.build(split, train=split == "train") for split in builder.splits()}


def _model_type(name: str, model_type: str | None) -> str | None:
    types = packaged_types("models", name)
    if model_type is None:
        pretrained = [known for known in types if known.startswith("pretrain")]
        return next(iter(pretrained or types), None)
    if types and model_type not in types:
        raise ConfigError(
            f"model '{name}' has no model_type '{model_type}'.{did_you_mean(model_type, types)} "
            f"Known: {', '.join(types)}"
        )
    return model_type


def _project(name: str, model_type: str | None, checkpoint: str | Path | None) -> dict[str, Any]:
    """What `load_model` resolves: a run's own configuration, or a packaged one."""
    saved = _run_of(checkpoint) if model_type is None else None
    project: dict[str, Any] = {}
    if saved is not None and _same_options(name, saved["model"].get("arch", name)):
        project["model"] = {**saved["model"], "arch": name}
    else:
        chosen = _model_type(name, model_type)
        project["model"] = {"arch": name, "model_type": chosen}
        if chosen is not None:
            saved = _run_of(_trained_by(name, chosen))
    if saved is not None:  # a frozen part without weights follows from the seed
        project |= {key: saved[key] for key in ("user_dir",) if key in saved}
        project |= {"run": {"seed": saved["run"]["seed"]}} if "run" in saved else {}
    if checkpoint is not None:
        project["model"]["pretrained"] = str(checkpoint)
    return project


def _same_options(name: str, other: str) -> bool:
    """The options of the model `other` are options of `name`: not so for another stage."""
    if name == other:
        return True
    known, theirs = (catalog.models.get(n).Config for n in (name, other))
    return {f.name for f in fields(known)} == {f.name for f in fields(theirs)}


def _trained_by(name: str, model_type: str) -> Path | None:
    """The run that a packaged type refers to, if it is one that is trained here."""
    packaged = packaged_defaults("models", name, model_type)
    return last_run(packaged["trained_by"]) if "trained_by" in packaged else None


def _run_of(checkpoint: str | Path | None) -> dict[str, Any] | None:
    """The configuration that `checkpoint` brings: of its run, or in Hugging Face's words.

    None for weights without one.
    """
    if checkpoint is None:
        return None
    from lavislite.models.blip2.hf_import import hf_config, hf_preprocess, is_hf_folder
    from lavislite.models.blip2.native import native_project

    path = saved_config(checkpoint)
    if path is not None:
        return native_project(path.parent)
    found = fetch(checkpoint) if str(checkpoint).startswith("hf://") else checkpoint
    if not is_hf_folder(found):
        return None
    arch, options = hf_config(found)
    return {"model": {"arch": arch, **options}, "preprocess": hf_preprocess(Path(found))}


def _processors(saved: dict[str, Any]) -> dict[str, Any]:
    """The processors of a run: those of its first dataset that has some."""
    datasets = [options or {} for options in (saved.get("datasets") or {}).values()]
    first = next((options for options in datasets if options.get("vis_processor")), {})
    return saved.get("preprocess") or first


class ModelZoo:
    """Architectures and their types. Printing shows a table; iterating gives (name, types)."""

    def names(self) -> list[str]:
        return catalog.models.names()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return ((name, packaged_types("models", name)) for name in self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __str__(self) -> str:
        return _table(("Architectures", "Types"), [(n, ", ".join(t) or "-") for n, t in self])

    __repr__ = __str__


class DatasetZoo:
    """Datasets and their packaged types. Printing shows a table; iterating gives (name, types)."""

    def names(self) -> list[str]:
        return catalog.datasets.names()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return ((name, packaged_types("datasets", name) or ["default"]) for name in self.names())

    def __len__(self) -> int:
        return len(self.names())

    def get_names(self) -> list[str]:
        """LAVIS's spelling of `names`."""
        return self.names()

    def __str__(self) -> str:
        return _table(("Datasets", "Types"), [(n, ", ".join(t)) for n, t in self])

    __repr__ = __str__


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    width = max(len(row[0]) for row in [head, *rows]) + 2
    lines = [f"{first:<{width}}{second}" for first, second in [head, *rows]]
    rule = "=" * max(map(len, lines))
    return "\n".join([rule, lines[0], rule, *lines[1:]])


model_zoo = ModelZoo()
dataset_zoo = DatasetZoo()
