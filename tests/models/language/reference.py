"""The tiny language models in the reference files of the original BLIP-2, and its recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lavislite.models.language.base import LanguageConfig, build_language

DATA = Path(__file__).parents[2] / "data"
QUERIES = 8


def recorded(kind: str) -> dict[str, Any]:
    """kind: "opt" or "t5"."""
    return json.loads((DATA / f"lavis_{kind}" / f"{kind}.json").read_text())


def tensors(kind: str, name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"lavis_{kind}" / f"{name}.safetensors")


def language_folder(kind: str, folder: Path) -> Path:
    """Configuration and tokenizer, without weights, as `LanguageConfig.name`."""
    shutil.copytree(DATA / f"lavis_{kind}" / "tokenizer", folder, dirs_exist_ok=True)
    config = dict(recorded(kind)["config"][f"{kind}_config"], model_type=kind)
    config.pop("dense_act_fn_override", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def language_config(kind: str, folder: Path) -> LanguageConfig:
    """How LAVIS used the model: OPT stops at a line break, T5 has the exact GELU."""
    special: dict[str, Any] = {"end": "\n"}
    if kind == "t5":
        special = {"options": {"dense_act_fn": "gelu"}}
    return LanguageConfig(name=str(language_folder(kind, folder)), weights="none", **special)


def reference_language(kind: str, folder: Path) -> Any:
    """The adapter with the recorded weights."""
    language = build_language(language_config(kind, folder))
    state = {
        name.removeprefix(f"{kind}_model."): tensor
        for name, tensor in tensors(kind, "state").items()
        if name.startswith(f"{kind}_model.")
    }
    language.model.load_state_dict(state)
    return language
