"""LoRA and quantization, through the libraries that do them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from lavislite.common.errors import ConfigError, UserError
from lavislite.models.language.base import BITS, LanguageConfig, LoraOptions


def require(module: str, extra: str, what: str) -> None:
    """Raise a UserError that tells how to install `module` when it is not there."""
    if find_spec(module) is None:
        raise UserError(
            f"{what} needs the package '{module}', which is not installed: "
            f'pip install "lavislite[{extra}]"'
        )


def add_lora(model: Any, options: LoraOptions, name: str) -> None:
    """Put low-rank adapters, in float32, into the linear layers of `model`, in place.

    Raises:
        UserError: peft is not installed.
        ConfigError: peft has no choice of layers for this family, or finds none of those named.
    """
    require("peft", "lora", "model.language.lora")
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type] # a fraction works as well
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
    )
    try:
        inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise ConfigError(
            f"model.language.lora.target_modules: no adapters for '{name}': {error} Name linear "
            f"layers of the model, such as {', '.join(_linear_names(model))}."
        ) from error
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = parameter.data.float()


def _linear_names(model: Any) -> list[str]:
    """Last parts of the names of the linear layers inside the blocks."""
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
    return sorted(names)


def quantization(cfg: LanguageConfig, dtype: torch.dtype) -> Any:
    """What transformers needs to load the model by bitsandbytes; None when it has no part in it.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if cfg.quantization not in BITS:
        return None
    for module in ("bitsandbytes", "accelerate"):
        require(module, "bnb", f"model.language.quantization: {cfg.quantization}")
    from transformers import BitsAndBytesConfig

    if cfg.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
