"""YAML layers to plain dataclasses.

Weakest first: dataclass defaults, the packaged YAML named by ``model_type`` / ``type``, ``base:``
files, the project file, ``--options a.b=c``. Every layer is merged by itself into a typed schema,
so that an error names the guilty file, the key and the nearest valid key. OmegaConf stays in
`layers` and `merge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from lavislite.common import catalog, lavis_compat
from lavislite.common.errors import ConfigError
from lavislite.common.layers import OPTIONS, Layer, base_layers, file_layers, parse_options
from lavislite.common.merge import merge
from lavislite.common.packaged import packaged_dataset, packaged_model
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig
from lavislite.common.trained import last_run
from lavislite.common.userdir import import_user_dir

LAST_RUN = "last_run:"  # in model.pretrained: the last finished run of that project file
SECTIONS = ("model", "datasets", "run", "base", "user_dir")


@dataclass
class Config:
    """A resolved configuration: what was asked for, with every default filled in."""

    model: Any  # instance of the model's Config
    datasets: dict[str, Any]  # name -> instance of its builder's Config
    run: RunConfig  # instance of the task's Config
    user_dir: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, in the shape of a project file."""
        data: dict[str, Any] = {} if self.user_dir is None else {"user_dir": self.user_dir}
        return data | {
            "model": asdict(self.model),
            "datasets": {name: asdict(cfg) for name, cfg in self.datasets.items()},
            "run": asdict(self.run),
        }

    def to_yaml(self) -> str:
        """A project file that needs no other and resolves to this configuration again."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_config(
    path: str | Path, options: Sequence[str] = (), user_dir: str | None = None
) -> Config:
    """Resolve the project file `path` under the command line's ``key.path=value`` options.

    Raises:
        ConfigError: file, key or value is wrong.
        UnknownNameError: arch, dataset or task is not registered.
    """
    layers = file_layers(Path(path))
    if options:
        layers.append(Layer(OPTIONS, parse_options(options)))
    return _resolve(layers, user_dir)


def resolve(data: Mapping[str, Any], *, origin: str) -> Config:
    """Resolve a project given as nested dictionaries; `origin` names it in messages."""
    layers = [*base_layers(dict(data), Path.cwd(), ()), Layer(origin, dict(data))]
    return _resolve(layers, None)


def resolve_dataset(name: str, data: Mapping[str, Any], *, origin: str) -> Any:
    """The options of one dataset alone: an instance of its builder's Config.

    Raises:
        ConfigError: a key or value is wrong.
        UnknownNameError: no such builder.
    """
    problems: list[str] = []
    resolved = _resolve_dataset(name, [Layer(origin, dict(data))], problems)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return resolved


def _resolve(layers: list[Layer], user_dir: str | None) -> Config:
    for layer in layers:
        _check_sections(layer)
        layer.data = lavis_compat.move_ratios(layer.data)
    user_dir = user_dir or _strongest(layers, "user_dir")
    if user_dir is not None:
        user_dir = str(import_user_dir(user_dir))
    problems: list[str] = []
    model = _resolve_model(layers, problems)
    datasets = {
        name: _resolve_dataset(name, own, problems)
        for name in _names(layers, "datasets")
        if (own := _dataset_layers(layers, name))
    }
    run = _resolve_run(layers, problems)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Config(model=model, datasets=datasets, run=run, user_dir=user_dir)


def _resolve_model(layers: list[Layer], problems: list[str]) -> Any:
    arch = _strongest(layers, "model", "arch")
    if arch is None:
        raise ConfigError(f"{layers[-1].origin}: model.arch is missing: which model?")
    schema = _config_class(catalog.models.get(arch, "model.arch"), f"model '{arch}'")
    model_type = _strongest(layers, "model", "model_type")
    packaged = packaged_model(arch, model_type) if model_type is not None else {}
    initial = packaged.get("before_finetuning")
    known = _known(schema)
    own = [
        Layer(layer.origin, lavis_compat.translate_model(layer.data, known, initial))
        for layer in _sections(layers, "model")
    ]
    first = Layer(f"configs/models/{arch}/{model_type}.yaml", packaged.get("model", {}))
    model = merge("model", schema, [first, *own], problems)
    found = getattr(model, "pretrained", None)
    if found is not None:
        model.pretrained = [*map(_located, found)] if isinstance(found, list) else _located(found)
    return model


def _located(source: Any) -> Any:
    """A source of weights; that of ``last_run:`` as the folder it means."""
    if not str(source).startswith(LAST_RUN):
        return source
    return str(last_run(str(source).removeprefix(LAST_RUN)))


def _resolve_dataset(name: str, layers: list[Layer], problems: list[str]) -> Any:
    builder = _strongest(layers, "builder") or name
    type_name = _strongest(layers, "type") or "default"
    key = f"datasets.{name}" if builder == name else f"datasets.{name}.builder"
    schema = _config_class(catalog.datasets.get(builder, key), f"dataset '{builder}'")
    known = _known(schema)
    own = [
        Layer(layer.origin, lavis_compat.translate_dataset(name, layer.data, known))
        for layer in (packaged_dataset(builder, type_name), *layers)
    ]
    return merge(f"datasets.{name}", schema, own, problems)


def _resolve_run(layers: list[Layer], problems: list[str]) -> Any:
    task = _strongest(layers, "run", "task") or RunConfig.task
    schema = _config_class(catalog.tasks.get(task, "run.task"), f"task '{task}'")
    known = _known(schema)
    own = [
        Layer(layer.origin, lavis_compat.translate_run(layer.data, known))
        for layer in _sections(layers, "run")
    ]
    return merge("run", schema, own, problems)


def _known(schema: type) -> set[str]:
    return {field.name for field in fields(schema)}


def _check_sections(layer: Layer) -> None:
    for key, value in layer.data.items():
        if key not in SECTIONS:
            near = did_you_mean(key, SECTIONS)
            raise ConfigError(
                f"{layer.origin}: unknown section '{key}'.{near} Known: {', '.join(SECTIONS)}"
            )
        if key in ("model", "datasets", "run") and not isinstance(value, dict | None):
            raise ConfigError(f"{layer.origin}: {key}: expected a mapping, saw {value!r}")
        if key == "datasets":
            for name, entry in (value or {}).items():
                if not isinstance(entry, dict | None):
                    raise ConfigError(
                        f"{layer.origin}: datasets.{name}: expected a mapping, saw {entry!r}"
                    )


def _config_class(target: Any, what: str) -> type:
    schema = getattr(target, "Config", None)
    if not (isinstance(schema, type) and is_dataclass(schema)):
        raise ConfigError(
            f"{what} ({target.__module__}.{target.__qualname__}) needs a class attribute `Config`: "
            "the dataclass of its options"
        )
    return schema


def _sections(layers: Iterable[Layer], section: str) -> list[Layer]:
    """The given section of every layer that has one."""
    return [Layer(layer.origin, layer.data[section]) for layer in layers if layer.data.get(section)]


def _names(layers: Iterable[Layer], section: str) -> list[str]:
    return list(dict.fromkeys(str(k) for layer in layers for k in layer.data.get(section) or {}))


def _dataset_layers(layers: Iterable[Layer], name: str) -> list[Layer]:
    """What each layer says about the dataset `name`.

    ``name:`` with nothing after it takes away what weaker layers said; said first, it means the
    builder's defaults.
    """
    found: list[Layer] = []
    for layer in _sections(layers, "datasets"):
        entry = layer.data.get(name, ...)
        if entry is None and found:
            found = []
        elif entry is not ...:
            found.append(Layer(layer.origin, entry or {}))
    return found


def _strongest(layers: Sequence[Layer], *keys: str) -> Any:
    """The value at `keys` in the strongest layer that has it."""
    for layer in reversed(layers):
        value: Any = layer.data
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
