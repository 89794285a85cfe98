"""Models from everywhere: our folders, LAVIS's checkpoints, Hugging Face's format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text, cache_dir
from lavislite.common.layers import parse_options
from lavislite.common.packaged import packaged_defaults, packaged_types
from lavislite.common.tensors import load_tensors, torch_content
from lavislite.common.trained import saved_config
from lavislite.common.transfer import fetch


class Source(NamedTuple):
    model: Any
    preprocess: dict[str, Any]  # the `preprocess:` section; empty when the source says nothing


def open_source(
    source: str | Path,
    *,
    arch: str | None = None,
    model_type: str | None = None,
    options: Sequence[str] = (),
) -> Source:
    """The model at `source`, in evaluation mode on the CPU; arguments as of `convert`.

    Raises:
        UserError: there is no model at `source`, or it takes `arch` to know which.
    """
    from lavislite.models.blip2.hf_import import is_hf_folder

    path = fetch(source)
    if path.is_dir() and is_hf_folder(path):
        return _open_hf(path, options)
    saved = saved_config(path)
    if saved is not None:
        return _open_ours(path, saved, arch, options)
    return _open_file(path, arch, model_type, options)


def from_hf(path: str | Path) -> Any:
    """The model in a folder of Hugging Face's BLIP-2 format, in evaluation mode on the CPU.

    Raises:
        CheckpointError: it is no BLIP-2, or its weights are damaged.
    """
    return _open_hf(Path(path).expanduser(), ()).model


def _open_hf(path: Path, options: Sequence[str]) -> Source:
    from lavislite.models.blip2.hf_import import load_hf
    from lavislite.models.blip2.weights import load_state

    loaded = load_hf(path)
    model = _build({"model": {**loaded.config, "arch": loaded.arch}}, options, str(path))
    load_state(model, loaded.state, str(path))
    return Source(model, loaded.preprocess)


def _open_ours(path: Path, saved: Path, arch: str | None, options: Sequence[str]) -> Source:
    from lavislite.models.blip2.native import native_project

    project = native_project(saved.parent)
    model = {**project["model"], "pretrained": str(path)}
    if arch is not None:
        model["arch"] = arch
    wanted: dict[str, Any] = {"model": model}
    wanted |= {key: project[key] for key in ("user_dir",) if key in project}
    if "run" in project:  # a frozen part without weights follows from the seed
        wanted["run"] = {"seed": project["run"]["seed"]}
    return Source(_build(wanted, options, str(path)), _preprocess(project))


def _open_file(
    path: Path, arch: str | None, model_type: str | None, options: Sequence[str]
) -> Source:
    told = _told_by(path)
    arch = arch or told.get("arch")
    if arch is None:
        raise UserError(
            f"{path} does not say which model it holds.{_guess(path)} Name it with --arch and "
            "--model-type."
        )
    if model_type is None and arch == told.get("arch"):
        model_type = told.get("model_type")
    model = {"arch": arch, "model_type": model_type, "pretrained": str(path)}
    if model_type is None:  # written by us: it has all options
        return Source(_build({"model": {**told, **model}}, options, str(path)), {})
    defaults = packaged_defaults("models", arch, model_type)
    return Source(_build({"model": model}, options, str(path)), defaults.get("preprocess", {}))


def _told_by(path: Path) -> dict[str, Any]:
    """The model's options that a checkpoint of LAVIS, or one of ours in its format, has saved."""
    content = torch_content(path) if path.is_file() and path.suffix != ".safetensors" else {}
    config = content.get("config") if isinstance(content, Mapping) else None
    if not isinstance(config, Mapping):
        return {}
    told = {key: value for key, value in config.get("model", {}).items() if key != "pretrained"}
    if "vocabulary" in config:
        told["tokenizer"] = _lay_out(config["vocabulary"])
    return told


def _lay_out(vocabulary: str) -> str:
    """The folder in our cache with this ``vocab.txt``."""
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()[:12]
    folder = cache_dir() / "vocabulary" / digest
    atomic_write_text(folder / "vocab.txt", vocabulary)
    return str(folder)


def _guess(path: Path) -> str:
    names = list(load_tensors(path))
    marks = {"opt_proj.": "blip2_opt", "t5_proj.": "blip2_t5", "llm_proj.": "blip2_llm"}
    for mark, arch in {**marks, "Qformer.cls.": "blip2"}.items():
        if any(name.startswith(mark) for name in names):
            types = ", ".join(packaged_types("models", arch)) or "none packaged"
            return f" It looks like a '{arch}' (types: {types})."
    return ""


def _build(project: dict[str, Any], options: Sequence[str], origin: str) -> Any:
    from lavislite.build import build_model
    from lavislite.common.config import resolve

    data = _over(project, parse_options(list(options))) if options else project
    return build_model(resolve(data, origin=origin)).eval()


def _over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _preprocess(project: Mapping[str, Any]) -> dict[str, Any]:
    """The processors of a model folder, or those of a run's first dataset that has some."""
    if project.get("preprocess"):
        return dict(project["preprocess"])
    keys = ("vis_processor", "text_processor")
    for options in (project.get("datasets") or {}).values():
        if options and options.get("vis_processor"):
            return {key: options[key] for key in keys if options.get(key)}
    return {}
