"""The tiny reference models of the original's stage 2: weights, inputs, and their numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lavislite.models.blip2.stage2 import (
    Blip2LLM,
    Blip2LLMConfig,
    Blip2OPT,
    Blip2OPTConfig,
    Blip2T5,
    Blip2T5Config,
)
from lavislite.models.language.base import LanguageConfig, build_language

from .reference import tiny_config, tiny_eva

DATA = Path(__file__).parents[1] / "data"
KINDS: dict[str, tuple[type[Blip2LLM], type[Blip2LLMConfig]]] = {
    "opt": (Blip2OPT, Blip2OPTConfig),
    "t5": (Blip2T5, Blip2T5Config),
}


def recorded(kind: str) -> dict[str, Any]:
    return json.loads((DATA / f"lavis_{kind}" / f"{kind}.json").read_text())


def stage2_tensors(kind: str, name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"lavis_{kind}" / f"{name}.safetensors")


def language_folder(kind: str, folder: Path) -> Path:
    """The tiny language model's configuration and tokenizer, as from the hub; no weights."""
    import transformers

    where = folder / f"{kind}-language"
    shutil.copytree(DATA / f"lavis_{kind}" / "tokenizer", where, dirs_exist_ok=True)
    options = dict(recorded(kind)["config"][f"{kind}_config"])
    activation = options.pop("dense_act_fn_override", None)
    config = {"opt": transformers.OPTConfig, "t5": transformers.T5Config}[kind](**options)
    if activation is not None:
        config.dense_act_fn = activation
    config.save_pretrained(where)
    content = json.loads((where / "config.json").read_text())
    for key in ("tie_word_embeddings",):  # the library does not write what it will ignore
        if key in options:
            content[key] = options[key]
    (where / "config.json").write_text(json.dumps(content))
    return where


def language_config(kind: str, folder: Path, **changes: Any) -> LanguageConfig:
    end = "\n" if kind == "opt" else None
    name = str(language_folder(kind, folder))
    return LanguageConfig(**{"name": name, "weights": "none", "end": end, **changes})


def stage2_config(kind: str, folder: Path, **changes: Any) -> Blip2LLMConfig:
    language = changes.pop("language", None) or language_config(kind, folder)
    settings = {
        "qformer": tiny_config().qformer,
        "num_query_tokens": 8,
        "max_txt_len": 16,
        "language": language,
        **changes,
    }
    return KINDS[kind][1](**settings)


def fresh_model(kind: str, folder: Path, *, frozen: bool = True, **changes: Any) -> Blip2LLM:
    """A model of the reference's sizes with random weights."""
    cfg = stage2_config(kind, folder, **changes)
    return KINDS[kind][0](
        cfg, vision=tiny_eva(frozen=frozen), language=build_language(cfg.language)
    )


def reference_stage2(kind: str, folder: Path, **changes: Any) -> Blip2LLM:
    """The model of the reference files, with all its weights."""
    model = fresh_model(kind, folder, **changes)
    model.load_pretrained(DATA / f"lavis_{kind}" / "state.safetensors")
    return model.eval()
