"""The YAML files that come with the package: ``lavislite/configs/<kind>/<name>/<type>.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.layers import Layer, read_yaml
from lavislite.common.registry import did_you_mean
from lavislite.common.trained import last_run

CONFIG_ROOT = Path(__file__).resolve().parents[1] / "configs"


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


def _packaged_folder(kind: str, name: str) -> Path:
    return CONFIG_ROOT / kind / _aliases(kind).get(name, name)


def _aliases(kind: str) -> dict[str, str]:
    """Names that share the packaged files of another: ``configs/<kind>/aliases.yaml``."""
    import yaml  # alone: listings shall be instant, and OmegaConf takes a while to import

    path = CONFIG_ROOT / kind / "aliases.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def packaged_dataset(builder: str, type: str) -> Layer:
    """The defaults of a dataset as the weakest of its layers."""
    origin = f"configs/datasets/{builder}/{type}.yaml"
    if type == "default" and type not in packaged_types("datasets", builder):
        return Layer(origin, {})  # a builder of the user's own needs no packaged file
    data = packaged_defaults("datasets", builder, type)
    data = data.get("datasets", {builder: data})  # LAVIS wraps it in datasets: {name: ...}
    return Layer(origin, next(iter(data.values())) or {})
