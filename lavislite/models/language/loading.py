"""Getting a language model and its tokenizer from a folder or the hub, once, in its final dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavislite.common import catalog
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.hub import hub_trouble
from lavislite.common.registry import did_you_mean
from lavislite.common.tensors import load_tensors
from lavislite.common.transfer import fetch
from lavislite.models.language.base import LanguageConfig
from lavislite.models.language.extras import quantization, require
from lavislite.models.language.probe import check_family
from lavislite.models.quantize import require_quantization
from lavislite.models.vision.base import DTYPES

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "vocab.json", "vocab.txt", "tekken.json"),
)


def load_config(cfg: LanguageConfig) -> tuple[Any, Mapping[str, Any]]:
    """The model's configuration with ``cfg.options``, and the file's content as it is.

    Raises:
        UserError: there is no such model, or it cannot be had.
        ConfigError: the configuration has no such entry, or refuses its value.
    """
    import transformers

    where = {"revision": cfg.revision, "trust_remote_code": cfg.trust_remote_code}
    _look(cfg.name)
    try:
        content, _ = transformers.PreTrainedConfig.get_config_dict(cfg.name, **where)
        config: Any = transformers.AutoConfig.from_pretrained(cfg.name, **where)
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load(cfg.name, error)) from error
    for key, value in cfg.options.items():
        if not hasattr(config, key):
            raise ConfigError(
                f"model.language.options: the configuration of '{cfg.name}' has no '{key}'."
                f"{did_you_mean(key, config.to_dict())}"
            )
        try:
            setattr(config, key, value)
        except Exception as error:  # the configuration classes check values in their own ways
            raise ConfigError(f"model.language.options.{key}: {error}") from error
    return config, content


def look(cfg: LanguageConfig) -> Any:
    """The configuration, when what a folder must hold is there; weights are not read.

    Raises:
        UserError, ConfigError: as `load_config`; no weights, no tokenizer.
    """
    config, _ = load_config(cfg)
    _require_tokenizer(Path(cfg.name))
    if cfg.weights != "none":
        _require_weights(Path(cfg.weights or cfg.name))
    return config


def load(cfg: LanguageConfig, kind: str) -> tuple[Any, Any]:
    """Model (a "causal" or a "seq2seq" one) and tokenizer.

    Raises:
        UserError, ConfigError: as `load_config`; no weights, no tokenizer.
        CheckpointError: the weights lack tensors, or do not fit.
    """
    require_quantization(cfg.quantization, "model.language.quantization")
    config, content = load_config(cfg)
    tokenizer = load_tokenizer(cfg)
    model = _load_model(cfg, kind, config)
    check_family(model, kind, cfg.name)
    if content.get("tie_word_embeddings") is False and cfg.weights == "none":
        _untie(model)
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise ConfigError(
            f"The tokenizer of '{cfg.name}' has ids up to {highest}, its model only {rows} "
            "embeddings: they do not belong together."
        )
    return model, tokenizer


def load_tokenizer(cfg: LanguageConfig) -> Any:
    """The tokenizer beside the model. Raises UserError when there is none."""
    import transformers

    _require_tokenizer(Path(cfg.name))
    try:
        return transformers.AutoTokenizer.from_pretrained(
            cfg.name, revision=cfg.revision, trust_remote_code=cfg.trust_remote_code
        )
    except Exception as error:  # tokenizers' files fail in as many ways as there are formats
        why = str(error) if isinstance(error, (OSError, ValueError, ImportError)) else repr(error)
        raise UserError(f"The tokenizer of '{cfg.name}' cannot be loaded: {why}") from error


def _require_tokenizer(folder: Path) -> None:
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZERS):
        raise UserError(
            f"{folder} holds no tokenizer (expected tokenizer.json, or one of "
            f"{', '.join(TOKENIZERS[1:])}). Save the tokenizer there with save_pretrained."
        )


def _require_weights(folder: Path) -> None:
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(
            f"{folder} holds no weights (expected {' or '.join(WEIGHTS)}). For random ones set "
            "model.language.weights: none."
        )


def frozen_dtype(cfg: LanguageConfig) -> torch.dtype:
    """The dtype that the weights are kept in."""
    if not cfg.freeze and cfg.lora is None:
        return torch.float32
    if cfg.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return DTYPES[cfg.precision]


def _load_model(cfg: LanguageConfig, kind: str, config: Any) -> Any:
    import transformers
    from safetensors import SafetensorError

    auto: Any = transformers.AutoModelForCausalLM
    if kind == "seq2seq":
        auto = transformers.AutoModelForSeq2SeqLM
    if type(config) not in auto._model_mapping and not cfg.trust_remote_code:
        other = "seq2seq" if kind == "causal" else "causal"
        raise ConfigError(
            f"'{cfg.name}' is a '{config.model_type}' model, which has no {kind} language model. "
            f"Is it meant as {other}:{cfg.name}?"
        )
    dtype = frozen_dtype(cfg)
    if cfg.weights == "none":
        return _from_config(auto, cfg, config, dtype)
    if cfg.device_map is not None:
        require("accelerate", "bnb", "model.language.device_map")
    source, state = _source(cfg)
    if source is None:
        auto = auto._model_mapping[type(config)]
    try:
        model, report = auto.from_pretrained(
            source,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are in the report
            quantization_config=quantization(cfg, dtype),
            device_map=cfg.device_map,
            revision=cfg.revision,
            trust_remote_code=cfg.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(_cannot_load(cfg.weights or cfg.name, error)) from error
    _check_report(cfg.weights or cfg.name, report)
    return model


def _from_config(auto: Any, cfg: LanguageConfig, config: Any, dtype: torch.dtype) -> Any:
    """The model with random weights."""
    try:
        return auto.from_config(config, dtype=dtype, trust_remote_code=cfg.trust_remote_code)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ConfigError(
            f"model.language: '{cfg.name}' cannot be built from its configuration: {why}"
        ) from error


def _check_report(source: str, report: Mapping[str, Any]) -> None:
    """Raise a CheckpointError when the weights lack tensors, or have them in other shapes."""
    wrong = sorted(report.get("mismatched_keys") or ())
    if wrong:
        name, stored, wanted = wrong[0]
        raise CheckpointError(
            f"{source} does not hold the weights of this language model: '{name}' has shape "
            f"{list(stored)}, the configuration needs {list(wanted)}."
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise CheckpointError(
            f"{source} does not hold the weights of this language model: it lacks {len(lacking)} "
            f"tensors, '{lacking[0]}' first."
        )


def _source(cfg: LanguageConfig) -> tuple[str | Path | None, Any]:
    """What ``from_pretrained`` shall read, and the tensors when they come from a single file."""
    chosen = cfg.weights or cfg.name
    folder = Path(chosen)
    if folder.is_dir():
        _require_weights(folder)
        return folder, None
    hub_id = chosen == cfg.name or (chosen.count("/") == 1 and not folder.suffix)
    if hub_id and not folder.exists():
        return chosen, None
    path = fetch(chosen)
    return (path, None) if path.is_dir() else (None, dict(load_tensors(path)))


def _untie(model: Any) -> None:
    """Give the head a table of its own; T5's configuration class ties it whatever the file says."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())


def _look(name: str) -> None:
    """Raise a UserError when it is clear beforehand that there is nothing to load."""
    if not name:
        raise ConfigError("model.language.name: is empty; name a hub id or a folder.")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} holds no config.json, so it is no language model's folder.")
        return
    local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if local:
        near = ""
        if folder.parent.is_dir():
            near = did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()])
        raise UserError(f"model.language.name: there is no folder '{name}'.{near}")
    hub_trouble()


def _cannot_load(name: str, error: Exception) -> str:
    if Path(name).exists():
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"model.language: {name} cannot be loaded: {first}"
    known = catalog.language_models.names()
    trouble = hub_trouble()
    reason = f"not in the Hugging Face cache, and {trouble}" if trouble else str(error)
    return (
        f"model.language.name: '{name}' is neither a registered name nor a folder, and as a hub id "
        f"it cannot be loaded: {reason}.{did_you_mean(name, known)}\n"
        f"Registered: {', '.join(known)}."
    )
