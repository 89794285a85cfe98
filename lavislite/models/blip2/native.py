"""Our own format of a finished model: one folder that needs nothing else.

``config.yaml`` (model and preprocessing), ``model.safetensors`` with all weights, frozen ones too,
and the vocabularies: ``tokenizer/vocab.txt`` of a Q-Former that reads, ``language/`` with the
language model's configuration and tokenizer. ``run.json`` marks the folder as ours, as in the
folder of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from lavislite.common.io import atomic_write
from lavislite.common.layers import read_yaml
from lavislite.common.version import __version__
from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.hf_config import plain_config
from lavislite.models.blip2.hf_export import plain_tensor, require_free, write_json, write_weights
from lavislite.models.blip2.text import save_tokenizer
from lavislite.models.quantize import check_whole

LANGUAGE = "language"  # sub-folder


def save_native(
    model: Any,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` to `folder`, which appears whole or not at all.

    Args:
        dtype: of all weights; None keeps each tensor's.
        preprocess: the ``preprocess:`` section that goes with the model.

    Raises:
        UserError: there is something at `folder`, or a frozen part's weights are not whole.
    """
    target = Path(folder).expanduser()
    require_free(target)
    check_whole(model)
    section = _model_section(model)
    language = getattr(model, "language", None)
    config = None if language is None else _language_config(language)
    state = {name: plain_tensor(t, dtype) for name, t in distinct_tensors(model).items()}

    def write(part: Path) -> None:
        part.mkdir()
        write_weights(state, part)
        project = {"model": section, "preprocess": dict(preprocess or {})}
        text = yaml.safe_dump(project, sort_keys=False, allow_unicode=True)
        (part / "config.yaml").write_text(text, encoding="utf-8")
        write_json({"lavislite": __version__, "arch": section["arch"]}, part / "run.json")
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, part / "tokenizer")
        if language is not None:
            language.tokenizer.save_pretrained(part / LANGUAGE)
            assert config is not None
            write_json(config, part / LANGUAGE / "config.json")

    atomic_write(target, write)
    return target


def native_project(folder: str | Path) -> dict[str, Any]:
    """``config.yaml`` of a folder, the path of its language model made absolute."""
    where = Path(folder).expanduser().resolve()
    project = read_yaml(where / "config.yaml")
    language = project.get("model", {}).get("language")
    if language is not None:
        kind, _, name = str(language["name"]).rpartition(":")
        if (where / name / "config.json").is_file():
            path = str(where / name)
            project["model"]["language"] = {**language, "name": f"{kind}:{path}" if kind else path}
    return project


def _model_section(model: Any) -> dict[str, Any]:
    """The model's options, asking for no weights that ``model.safetensors`` brings."""
    section = json.loads(json.dumps(asdict(model.cfg)))
    section |= {"model_type": None, "pretrained": None}
    section["vision"]["weights"] = "none"
    section["qformer"]["init"] = "none"
    if "tokenizer" in section:
        section["tokenizer"] = "auto"
    if "language" in section:
        own = {"name": f"{model.language.kind}:{LANGUAGE}", "weights": "none", "options": {}}
        section["language"] |= {**own, "device_map": None, "revision": None}
    return section


def _language_config(language: Any) -> dict[str, Any]:
    config = plain_config(language.model)
    for key in ("eos_token_id", "decoder_start_token_id"):
        value = getattr(language.model.generation_config, key, None)
        if value is not None:
            config[key] = value
    return config
