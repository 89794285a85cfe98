"""A folder in Hugging Face's BLIP-2 format, as the configuration and the state of our model.

`Blip2ForConditionalGeneration` with any language model and `Blip2ForImageTextRetrieval`, from the
hub or from `hf_export`. The language model's configuration and tokenizer are laid out as a folder
of their own in our cache, because that is what a language model is built from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavislite.common.errors import CheckpointError
from lavislite.common.io import atomic_write, atomic_write_text, cache_dir, read_json
from lavislite.common.logging import get_logger
from lavislite.common.tensors import load_tensors
from lavislite.models.blip2.hf_export import OURS
from lavislite.models.blip2.hf_format import OUR_LM, WORDS, from_hf
from lavislite.models.blip2.hf_tokens import vocabulary_file

logger = get_logger(__name__)

WRITES, RETRIEVES = "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval"
EVA_G = {"width": 1408, "depth": 39, "heads": 16, "inner_width": 6144, "patch_size": 14}
# Our own options that the format does not know; a folder that we wrote remembers them.
KEPT = (
    *("prompt", "max_txt_len", "max_output_txt_len", "label_smoothing", "negative_sharpness"),
    *("ln_vision_eps",),
)


class FromHF(NamedTuple):
    arch: str
    config: dict[str, Any]  # the `model:` section without arch
    state: dict[str, Tensor]  # under our names, the tower's as timm has them
    preprocess: dict[str, Any]  # the processors, as a `preprocess:` section


def is_hf_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a BLIP-2 in Hugging Face's format."""
    config = Path(path).expanduser() / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "blip-2"


def load_hf(path: str | Path) -> FromHF:
    """What `lavislite.load_model` needs of the folder `path`.

    Raises:
        CheckpointError: another kind of model, or weights that are damaged or not of BLIP-2.
    """
    folder = Path(path).expanduser()
    arch, config = hf_config(folder)
    ours = _our_notes(folder)
    state = from_hf(load_tensors(folder), fused_bias=bool(ours.get("fused_bias"))).state
    if arch == "blip2":
        state |= _homeless(folder, state)
    else:
        _check_head(state, Path(config["language"]["name"]), folder)
    return FromHF(arch, config, state, hf_preprocess(folder))


def hf_config(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Our architecture and its options for the model in `path`, without reading its weights.

    Raises:
        CheckpointError: it is no BLIP-2, or one of another kind.
    """
    from transformers import Blip2Config

    folder = Path(path).expanduser()
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != "blip-2":
        raise CheckpointError(
            f"{folder} holds a '{raw.get('model_type')}' model; expected 'blip-2' "
            f"({WRITES} or {RETRIEVES})."
        )
    theirs: Any = Blip2Config.from_pretrained(folder)
    stage1 = RETRIEVES in (raw.get("architectures") or ())
    notes = _our_notes(folder).get("model", {})
    config: dict[str, Any] = {
        "vision": _vision(theirs.vision_config, notes.get("vision")),
        "qformer": _qformer(theirs.qformer_config),
        "num_query_tokens": theirs.num_query_tokens,
        "ln_vision_eps": theirs.vision_config.layer_norm_eps,
        **{key: notes[key] for key in KEPT if key in notes},
    }
    own_folder = _companion(folder, raw)
    if stage1:
        config["embed_dim"] = theirs.image_text_hidden_size
        config["tokenizer"] = str(_vocabulary(folder, own_folder, theirs.qformer_config.vocab_size))
        return "blip2", config
    language = _language(folder, own_folder, theirs.text_config, raw.get("text_config") or {})
    config["language"] = {**language, "end": _end(language["name"], theirs.text_config, notes)}
    family = theirs.text_config.model_type
    return {"opt": "blip2_opt", "t5": "blip2_t5"}.get(family, "blip2_llm"), config


# ----------------------------------------------------------------------------------------- sizes


def _vision(theirs: Any, noted: Mapping[str, Any] | None) -> dict[str, Any]:
    if noted is not None and str(noted["name"]).startswith(("timm:", "eva")):
        return {**noted, "weights": "none"}
    sizes = {
        "width": theirs.hidden_size,
        "depth": theirs.num_hidden_layers,
        "heads": theirs.num_attention_heads,
        "inner_width": theirs.intermediate_size,
        "patch_size": theirs.patch_size,
    }
    if theirs.hidden_act != "gelu":
        raise CheckpointError(
            f"vision_config.hidden_act: '{theirs.hidden_act}'; BLIP-2's towers have 'gelu'."
        )
    vision = {"image_size": theirs.image_size, "weights": "none"}
    if sizes == EVA_G and theirs.layer_norm_eps == 1e-6 and theirs.qkv_bias:
        return {"name": "eva_clip_g", **vision}
    exact = {"norm_eps": theirs.layer_norm_eps, "qkv_bias": theirs.qkv_bias}
    return {"name": "eva", **vision, "options": {**sizes, **exact}}


def _qformer(theirs: Any) -> dict[str, Any]:
    return {
        "hidden_size": theirs.hidden_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "intermediate_size": theirs.intermediate_size,
        "cross_attention_freq": theirs.cross_attention_frequency,
        "max_positions": theirs.max_position_embeddings,
        "dropout": theirs.hidden_dropout_prob,
        "attention_dropout": theirs.attention_probs_dropout_prob,
        "layer_norm_eps": theirs.layer_norm_eps,
        "initializer_range": theirs.initializer_range,
        "init": "none",
    }


def hf_preprocess(folder: Path) -> dict[str, Any]:
    """The processors of a folder: size and statistics, from either file that may hold them."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        found = found or content.get("image_processor", content)
    told = {
        "image_size": found.get("size", {}).get("height"),
        "mean": found.get("image_mean"),
        "std": found.get("image_std"),
    }
    image = {"name": "blip_image_eval", **{k: v for k, v in told.items() if v is not None}}
    text = {"name": "blip_caption"}
    return {
        "vis_processor": {"train": image, "eval": image},
        "text_processor": {"train": text, "eval": text},
    }


# ------------------------------------------------------------------------------------ vocabularies


def _companion(folder: Path, raw: Mapping[str, Any]) -> Path:
    """Where in our cache the parts of this folder are laid out."""
    text = f"{folder.resolve()} {json.dumps(raw, sort_keys=True)}"
    return cache_dir() / "hf" / hashlib.sha256(text.encode()).hexdigest()[:12]


def _vocabulary(folder: Path, target: Path, rows: int) -> Path:
    """The Q-Former's ``vocab.txt`` in a folder of its own."""
    from transformers import AutoTokenizer

    text = vocabulary_file(AutoTokenizer.from_pretrained(folder), rows)
    atomic_write_text(target / "vocab.txt", text)
    return target


def _language(folder: Path, target: Path, theirs: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the language model: its folder with configuration and tokenizer, no weights."""
    config = theirs.to_dict()
    untied = raw.get("tie_word_embeddings") is False
    if untied or config.get("scale_decoder_outputs") is False:  # T5's class writes true
        config["tie_word_embeddings"] = False

    def write(part: Path) -> None:
        part.mkdir()
        text = json.dumps(config, indent=2)
        (part / "config.json").write_text(text, encoding="utf-8")
        for file in folder.iterdir():
            if file.name in _TOKENIZER_FILES or file.suffix in (".model", ".jinja"):
                shutil.copy(file, part / file.name)

    if not (target / "config.json").is_file():
        atomic_write(target, write)
    return {"name": str(target), "weights": "none"}


_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "generation_config.json"),
)


def _end(name: str, theirs: Any, notes: Mapping[str, Any]) -> str | None:
    """The text that ends a target; None where that is the tokenizer's own end token."""
    if "language" in notes:
        return notes["language"]["end"]
    from transformers import AutoTokenizer

    eos = theirs.eos_token_id
    first = eos[0] if isinstance(eos, list) else eos
    tokenizer = AutoTokenizer.from_pretrained(name)
    return None if first in (None, tokenizer.eos_token_id) else str(tokenizer.decode([first]))


# ------------------------------------------------------------------------------------- the weights


def _our_notes(folder: Path) -> dict[str, Any]:
    file = folder / OURS / "model.json"
    return dict(read_json(file)) if file.is_file() else {}


def _check_head(state: Mapping[str, Tensor], language: Path, folder: Path) -> None:
    """Raise CheckpointError when tying would silently throw away an output matrix."""
    head = state.get(OUR_LM + "lm_head.weight")
    if head is None or not read_json(language / "config.json").get("tie_word_embeddings"):
        return
    tables = ("shared.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight")
    inputs = [t for n, t in state.items() if n.startswith(OUR_LM) and n.endswith(tables)]
    if inputs and not any(torch.equal(head, table) for table in inputs):
        raise CheckpointError(
            f"{folder}: lm_head.weight differs from the embedding, though "
            "text_config.tie_word_embeddings is true. Set it to false in config.json."
        )


def _homeless(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Language head and temperature of stage 1: what we put aside, else neutral values."""
    extra = folder / OURS / "extra.safetensors"
    if extra.is_file():
        return dict(load_tensors(extra))
    logger.warning(
        "%s has no language head: this model matches and ranks, but what it writes means nothing.",
        folder,
    )
    rows, width = state[WORDS].shape
    head = "Qformer.cls.predictions."
    return {
        head + "bias": torch.zeros(rows),
        head + "transform.dense.weight": torch.eye(width),
        head + "transform.dense.bias": torch.zeros(width),
        head + "transform.LayerNorm.weight": torch.ones(width),
        head + "transform.LayerNorm.bias": torch.zeros(width),
        "temp": torch.full((1,), 0.07),
    }
