"""YAML layers to plain dataclasses.

Weakest first: dataclass defaults, the packaged YAML named by ``model_type`` / ``type``, ``base:``
files, the project file, ``--options a.b=c``. Every layer is merged by itself into a typed schema,
so that an error names the guilty file, the key and the nearest valid key. OmegaConf stays in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from lavislite.common import catalog, lavis_compat
from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig
from lavislite.common.trained import last_run
from lavislite.common.userdir import import_user_dir

CONFIG_ROOT = Path(__file__).resolve().parents[1] / "configs"
SECTIONS = ("model", "datasets", "run", "base", "user_dir")
OPTIONS = "--options"


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


@dataclass
class Layer:
    """One source of settings and what to call it in messages."""

    origin: str
    data: dict[str, Any]


# ------------------------------------------------------------------------------------------ public


def load_config(
    path: str | Path, options: Sequence[str] = (), user_dir: str | None = None
) -> Config:
    """Resolve the project file `path` under the command line's ``key.path=value`` options.

    Raises:
        ConfigError: file, key or value is wrong.
        UnknownNameError: arch, dataset or task is not registered.
    """
    layers = _file_layers(Path(path))
    if options:
        layers.append(Layer(OPTIONS, _parse_options(options)))
    return _resolve(layers, user_dir)


def resolve(data: Mapping[str, Any], *, origin: str) -> Config:
    """Resolve a project given as nested dictionaries; `origin` names it in messages."""
    layers = [*_base_layers(dict(data), Path.cwd(), ()), Layer(origin, dict(data))]
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


def packaged_defaults(kind: str, name: str, type: str) -> dict[str, Any]:
    """The content of ``lavislite/configs/<kind>/<name>/<type>.yaml``.

    Raises:
        ConfigError: no such type; the valid ones are listed.
    """
    known = packaged_types(kind, name)
    if type not in known:
        key, noun = ("model_type", "model") if kind == "models" else ("type", "dataset")
        listed = ", ".join(known) or "(none)"
        raise ConfigError(
            f"{noun} '{name}' has no {key} '{type}'.{did_you_mean(type, known)} Known: {listed}"
        )
    return read_yaml(_packaged_folder(kind, name) / f"{type}.yaml")


def packaged_model(arch: str, model_type: str) -> dict[str, Any]:
    """`packaged_defaults` of a model; one that is `trained_by` a project here gets that run's.

    Raises:
        ConfigError: no such type.
        CheckpointError: the project has not been run yet; says how to.
    """
    packaged = packaged_defaults("models", arch, model_type)
    if "trained_by" not in packaged:
        return packaged
    run_dir = last_run(packaged["trained_by"])
    saved = read_yaml(run_dir / "config.yaml")["model"]
    return {**packaged, "model": {**saved, "pretrained": str(run_dir)}}


def packaged_types(kind: str, name: str) -> list[str]:
    """The types packaged for the model or dataset `name`, sorted."""
    return sorted(path.stem for path in _packaged_folder(kind, name).glob("*.yaml"))


def packaged_names(kind: str) -> list[str]:
    """The models or datasets that have packaged configurations, aliases included."""
    folders = {path.name for path in (CONFIG_ROOT / kind).glob("*") if path.is_dir()}
    return sorted(folders | set(_aliases(kind)))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ``${...}`` stays as it is.

    Raises:
        ConfigError: missing (the nearest file name is offered), malformed (line and column), or not
            a mapping.
    """
    import yaml
    from omegaconf import OmegaConf

    found = _existing(Path(path))
    try:
        data = OmegaConf.to_container(OmegaConf.load(found), resolve=False)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_yaml_message(found, error)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{found}: cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{found}: expected sections like `model:`, saw a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


# ------------------------------------------------------------------------------------------ layers


def _file_layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of `path`: those of its ``base:`` files, then its own."""
    found = _existing(path)
    real = found.resolve()
    if real in above:
        circle = " -> ".join(str(p.name) for p in (*above[above.index(real) :], real))
        raise ConfigError(f"{found}: base files form a circle: {circle}")
    data = read_yaml(found)
    if data.get("user_dir") is not None:
        data["user_dir"] = str(_beside(found.parent, data["user_dir"]))
    return [*_base_layers(data, found.parent, (*above, real)), Layer(str(path), data)]


def _base_layers(data: dict[str, Any], folder: Path, above: tuple[Path, ...]) -> list[Layer]:
    base = data.pop("base", None) or []
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"base: expected a file name or a list of them, saw {base!r}")
    files = [_existing(folder / name, "base file") for name in names]
    return [layer for file in files for layer in _file_layers(file, above)]


def _beside(folder: Path, name: Any) -> Path:
    """`name` beside the file that mentions it, else as seen from the working directory."""
    local = folder / Path(str(name)).expanduser()
    return (local if local.exists() else Path(str(name)).expanduser()).resolve()


def _parse_options(options: Sequence[str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged: Any = OmegaConf.create()
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals or not key or key != key.strip():
            raise ConfigError(f"{OPTIONS}: expected section.key=value, saw '{option}'")
        if key.split(".")[0] in ("base", "user_dir"):
            raise ConfigError(
                f"{OPTIONS}: '{key}' can only stand in a file"
                + (" (or use --user-dir)" if key == "user_dir" else "")
            )
        try:
            merged = OmegaConf.unsafe_merge(merged, OmegaConf.from_dotlist([option]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{OPTIONS}: cannot read '{option}': {reason}") from error
    data = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _existing(path: Path, what: str = "config file") -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a YAML file is expected")
    if not path.parent.is_dir():
        raise ConfigError(f"No {what} {path}: the folder {path.parent} does not exist")
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    raise ConfigError(f"No {what} {path}.{did_you_mean(path.name, names)}")


def _yaml_message(path: Path, error: Any) -> str:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(part for part in (error.context, error.problem) if part)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{path}{where}: {problem}"


# ---------------------------------------------------------------------------------------- packaged


def _packaged_folder(kind: str, name: str) -> Path:
    return CONFIG_ROOT / kind / _aliases(kind).get(name, name)


def _aliases(kind: str) -> dict[str, str]:
    """Names that share the packaged files of another: ``configs/<kind>/aliases.yaml``."""
    import yaml  # alone: listings shall be instant, and OmegaConf takes a while to import

    path = CONFIG_ROOT / kind / "aliases.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _packaged_dataset(builder: str, type: str) -> Layer:
    origin = f"configs/datasets/{builder}/{type}.yaml"
    if type == "default" and type not in packaged_types("datasets", builder):
        return Layer(origin, {})  # a builder of the user's own needs no packaged file
    data = packaged_defaults("datasets", builder, type)
    data = data.get("datasets", {builder: data})  # LAVIS wraps it in datasets: {name: ...}
    return Layer(origin, next(iter(data.values())) or {})


# ----------------------------------------------------------------------------------------- resolve


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
    return _merge("model", schema, [first, *own], problems)


def _resolve_dataset(name: str, layers: list[Layer], problems: list[str]) -> Any:
    builder = _strongest(layers, "builder") or name
    type_name = _strongest(layers, "type") or "default"
    key = f"datasets.{name}" if builder == name else f"datasets.{name}.builder"
    schema = _config_class(catalog.datasets.get(builder, key), f"dataset '{builder}'")
    known = _known(schema)
    own = [
        Layer(layer.origin, lavis_compat.translate_dataset(name, layer.data, known))
        for layer in (_packaged_dataset(builder, type_name), *layers)
    ]
    return _merge(f"datasets.{name}", schema, own, problems)


def _resolve_run(layers: list[Layer], problems: list[str]) -> Any:
    task = _strongest(layers, "run", "task") or RunConfig.task
    schema = _config_class(catalog.tasks.get(task, "run.task"), f"task '{task}'")
    known = _known(schema)
    own = [
        Layer(layer.origin, lavis_compat.translate_run(layer.data, known))
        for layer in _sections(layers, "run")
    ]
    return _merge("run", schema, own, problems)


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


# ------------------------------------------------------------------------------------------- merge


def _merge(section: str, schema: type, layers: list[Layer], problems: list[str]) -> Any:
    """An instance of `schema` with the layers applied; what does not fit goes into `problems`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.structured(schema)
    for layer in layers:
        node = _merge_layer(node, section, layer, problems)
    try:
        OmegaConf.resolve(node)
        missing = sorted(OmegaConf.missing_keys(node))
        if not missing:
            return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        problems.append(f"{_where(layers)}: {section}: {str(error).splitlines()[0]}")
        return None
    problems.extend(f"{_where(layers)}: {section}.{key} is missing" for key in missing)
    return None


def _where(layers: list[Layer]) -> str:
    return layers[-1].origin if layers else "defaults"


def _merge_layer(node: Any, section: str, layer: Layer, problems: list[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    data: Any = OmegaConf.to_container(OmegaConf.create(layer.data), resolve=False)
    while data:
        try:
            return OmegaConf.merge(node, data)
        except OmegaConfBaseException as error:
            keys = _guilty(node, data)
            if keys is None:
                raise ConfigError(f"{layer.origin}: {section}: {error}") from error
            problems.append(f"{layer.origin}: {_describe(node, data, section, keys)}")
            _remove(data, keys)  # and look for more
    return node


def _guilty(node: Any, data: Any, above: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The path of one key of `data` that does not fit `node`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key, value in data.items():
        try:
            OmegaConf.merge(node, {key: value})
        except OmegaConfBaseException:
            path = (*above, str(key))
            inner = _child(node, key)
            if inner is not None and isinstance(value, dict) and value:
                return _guilty(inner, value, path) or path
            return path
    return None


def _child(node: Any, key: str) -> Any:
    """The mapping under `key`, or None when the key is unknown or holds something else."""
    from omegaconf import DictConfig

    child = node._get_node(key) if key in _field_names(node) else None
    if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
        return child
    return None


def _field_names(node: Any) -> list[str]:
    return [str(key) for key in node]


def _describe(node: Any, data: Any, section: str, keys: tuple[str, ...]) -> str:
    """One sentence about the value at `keys`: unknown key, or expected and seen type."""
    for key in keys[:-1]:
        node, data = node._get_node(key), data[key]
    known, last = _field_names(node), keys[-1]
    full = ".".join((section, *keys))
    if last not in known:
        near = did_you_mean(last, known)
        listed = "" if near else f" Known: {', '.join(known)}"
        return f"{full}: unknown key.{near}{listed}"
    expected = "a mapping" if _child(node, last) is not None else _type_name(node, last)
    return f"{full}: expected {expected}, saw {data[last]!r} ({type(data[last]).__name__})"


def _type_name(node: Any, key: str) -> str:
    from omegaconf import OmegaConf

    schema = OmegaConf.get_type(node)
    if schema is not None and is_dataclass(schema):
        for field in fields(schema):
            if field.name == key:
                kind = field.type
                return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return "another type"


def _remove(data: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys[:-1]:
        data = data[key]
    for key in list(data):
        if str(key) == keys[-1]:
            del data[key]
