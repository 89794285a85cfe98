"""Where settings come from: YAML files with their ``base:`` files, and ``--options a.b=c``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.registry import did_you_mean

OPTIONS = "--options"


@dataclass
class Layer:
    """One source of settings and what to call it in messages."""

    origin: str
    data: dict[str, Any]


def file_layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of `path`: those of its ``base:`` files, then its own."""
    found = _existing(path)
    real = found.resolve()
    if real in above:
        circle = " -> ".join(str(p.name) for p in (*above[above.index(real) :], real))
        raise ConfigError(f"{found}: base files form a circle: {circle}")
    data = read_yaml(found)
    if data.get("user_dir") is not None:
        data["user_dir"] = str(_beside(found.parent, data["user_dir"]))
    return [*base_layers(data, found.parent, (*above, real)), Layer(str(path), data)]


def base_layers(data: dict[str, Any], folder: Path, above: tuple[Path, ...]) -> list[Layer]:
    """Take ``base:`` out of `data` and return the layers of the files it names."""
    base = data.pop("base", None) or []
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"base: expected a file name or a list of them, saw {base!r}")
    files = [_existing(folder / name, "base file") for name in names]
    return [layer for file in files for layer in file_layers(file, above)]


def _beside(folder: Path, name: Any) -> Path:
    """`name` beside the file that mentions it, else as seen from the working directory."""
    local = folder / Path(str(name)).expanduser()
    return (local if local.exists() else Path(str(name)).expanduser()).resolve()


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` words as nested dictionaries.

    Raises:
        ConfigError: a word is not of this form.
    """
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
