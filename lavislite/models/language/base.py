"""Language models: what they must be, how one is chosen, and what a wrong one is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.generation import GenerationOptions
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import check_bounds
from lavislite.models.fingerprint import fingerprint, kept_fingerprint
from lavislite.models.vision.base import DTYPES, QUANTIZATIONS

ADAPTERS = ("causal", "seq2seq")
BITS = ("8bit", "4bit")  # quantization by bitsandbytes, while loading


@dataclass
class LoraOptions:
    """Low-rank adapters that train while the language model's own weights stay frozen.

    target_modules: names of the linear layers that get one; null is peft's choice for the family.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: list[str] | None = None


@dataclass
class LanguageConfig:
    """Which language model, and how it is loaded.

    name: a hub id, a folder, a registered name, or ``causal:<id>`` / ``seq2seq:<id>``.
    precision: dtype of a frozen model: fp32, bf16 or fp16; auto is bf16 on CUDA and fp32 elsewhere.
        One that trains is kept in fp32.
    weights: null for those beside the configuration, "none" for random ones, or a folder or file.
    end: the text that ends a target and stops generation; null is the tokenizer's end token.
    quantization: "int8" or "fp8" (GPUs of compute capability 8.9) through torchao, which computes
        in 8 bits; "8bit" or "4bit" through bitsandbytes, which saves memory.
    device_map: where the parts go, for inference, as transformers and accelerate read it.
    options: entries of the model's own configuration to override.
    """

    name: str = "facebook/opt-2.7b"
    freeze: bool = True
    precision: str = "auto"
    weights: str | None = None
    end: str | None = None
    quantization: str | None = None
    lora: LoraOptions | None = None
    device_map: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        choices: dict[str, tuple[str, ...]] = {
            "precision": ("auto", *DTYPES),
            "quantization": (*BITS, *QUANTIZATIONS),
        }
        for key, known in choices.items():
            value = getattr(self, key)
            if value is not None and value not in known:
                raise ConfigError(
                    f"model.language.{key}: '{value}' is unknown.{did_you_mean(value, known)} "
                    f"Known: {', '.join(known)}."
                )
        if self.lora is not None:
            check_bounds("model.language.lora", self.lora, {"rank": (1, None), "dropout": (0, 1)})
        if not self.freeze and self.lora is None:
            for key in ("quantization", "device_map"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"model.language.{key}: a model so loaded cannot train. Set freeze: true, "
                        f"or add lora."
                    )
        if self.quantization in BITS and self.weights == "none":
            raise ConfigError(
                f"model.language.quantization: {self.quantization} needs weights, weights is none."
            )


class NLL(NamedTuple):
    """Negative log-likelihood of each row's target: its sum [B] in float32, and its tokens [B]."""

    total: Tensor
    count: Tensor  # type: ignore[assignment] # hides tuple.count, which nobody needs here


class LanguageModel(Protocol):
    """A language model that reads a soft prefix (image tokens) followed by text.

    A prefix is [B, n, hidden_size], with an optional mask [B, n] of what is real; n may be 0.
    Further attributes: ``kind`` ("causal" or "seq2seq"), ``tokenizer``, ``context_length``. Models
    of the library also have ``texts`` (`PairTokeniser`), whose tokens `nll` takes as ``tokens=``,
    and ``rank``; a model of one's own need have neither.
    """

    hidden_size: int

    def nll(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        prefix_mask: Tensor | None = None,
        max_txt_len: int | None = None,
        max_output_txt_len: int | None = None,
        skip: int | None = None,
    ) -> NLL: ...

    def generate(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        prefix_mask: Tensor | None = None,
        max_txt_len: int | None = None,
    ) -> list[str]: ...


def language_kind(cfg: LanguageConfig) -> str | None:
    """ "causal" or "seq2seq", found without building anything; None for a registered name.

    Raises:
        UserError: there is no such model, or its folder lacks weights or tokenizer.
    """
    from lavislite.models.language.loading import look

    prefix, _, rest = cfg.name.partition(":")
    if cfg.name in catalog.language_models or (rest and prefix in catalog.language_models):
        if prefix not in ADAPTERS or not rest:
            return None
        look(replace(cfg, name=rest))
        return prefix
    return ADAPTERS[bool(look(cfg).is_encoder_decoder)]


def build_language(cfg: LanguageConfig) -> nn.Module:
    """Build the language model, try it on a short text, freeze it if asked.

    A registered name is called with `cfg` and returns the adapter; other names are hub ids or
    folders, and the model's configuration says whether it has an encoder. On the meta device
    nothing is tried.

    Raises:
        ConfigError: a value cannot be, or the family cannot read image tokens.
        UserError: there is no such model, or it cannot be had.
        CheckpointError: its weights are incomplete.
    """
    from lavislite.models.language.loading import load_config
    from lavislite.models.language.probe import check_language

    cfg.check()
    registry = catalog.language_models
    prefix, _, rest = cfg.name.partition(":")
    if rest and prefix in registry:
        language = registry.get(prefix)(replace(cfg, name=rest))
    elif cfg.name in registry:
        if cfg.name in ADAPTERS:
            raise ConfigError(f"model.language.name: '{cfg.name}' needs a model: '{cfg.name}:<id>'")
        language = registry.get(cfg.name)(cfg)
    else:
        config, _ = load_config(cfg)
        language = registry.get(ADAPTERS[bool(config.is_encoder_decoder)])(cfg)
    if not isinstance(language, nn.Module) or not hasattr(language, "hidden_size"):
        raise ConfigError(
            f"The language model '{cfg.name}' must be a torch.nn.Module with hidden_size, nll and "
            f"generate; it is a {type(language).__name__}."
        )
    if hasattr(language, "model") and not any(p.is_meta for p in language.parameters()):
        check_language(language)
    return language


def language_fingerprint(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that name the weights, LoRA's adapters left out."""
    if (kept := kept_fingerprint(module)) is not None:
        return kept
    state = module.state_dict()
    own = {name.replace(".base_layer.", "."): x for name, x in state.items() if "lora_" not in name}
    return fingerprint(own)
