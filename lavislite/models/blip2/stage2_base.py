"""The parts of a stage-2 model: the bridge, a language model, and the projection between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.schema import check_bounds
from lavislite.models.blip2.bridge import Blip2Bridge, BridgeConfig, build_tower, is_frozen
from lavislite.models.blip2.samples import Pictures, pictures
from lavislite.models.language.base import (
    LanguageConfig,
    build_language,
    language_fingerprint,
    language_kind,
)

_ARCHS = {"causal": "blip2_opt", "seq2seq": "blip2_t5"}
_KINDS = {"causal": "a decoder-only model", "seq2seq": "an encoder-decoder"}


@dataclass
class Blip2LLMConfig(BridgeConfig):
    """Stage 2 of BLIP-2 with any language model.

    prompt: what comes before every caption; with ``{}`` for the question, the form of questions.
    max_txt_len: tokens of a caption with its prompt, or of a question.
    max_output_txt_len: tokens of ``text_output``; null is max_txt_len.
    """

    arch: str = "blip2_llm"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    prompt: str = ""
    max_output_txt_len: int | None = 128

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        super().check()
        check_bounds("model", self, {"max_txt_len": (2, None), "max_output_txt_len": (2, None)})
        self.language.check()


class Blip2Language(Blip2Bridge):
    """Image tower, Q-Former and language model; the queries become its first words.

    Args:
        vision: see `Blip2Bridge`.
        language: from `build_language`; frozen when none of its parameters wants a gradient.
    """

    Config: ClassVar[type[Any]] = Blip2LLMConfig
    takes: ClassVar[str | None] = None  # the kind of language model; None is any

    def __init__(self, cfg: Blip2LLMConfig, *, vision: nn.Module, language: Any) -> None:
        super().__init__(cfg, vision=vision, vocab_size=None)
        self.language = language
        self.llm_proj = nn.Linear(cfg.qformer.hidden_size, language.hidden_size)
        self.language_is_frozen = is_frozen(language)
        self.start()
        self._check_room(cfg.prompt)

    @classmethod
    def look(cls, cfg: Any) -> None:
        super().look(cfg)
        cls._check_kind(language_kind(cfg.language), cfg)

    @classmethod
    def _check_kind(cls, kind: str | None, cfg: Any) -> None:
        if cls.takes is not None and kind is not None and kind != cls.takes:
            raise ConfigError(
                f"model.language.name: '{cfg.language.name}' is {_KINDS[kind]}, "
                f"{cfg.arch} speaks through {_KINDS[cls.takes]}. Set model.arch={_ARCHS[kind]}, "
                "or blip2_llm, which takes both."
            )

    def _check_room(self, prompt: str) -> None:
        """Raise a ConfigError when `prompt` leaves no token of max_txt_len for a caption."""
        codec = getattr(self.language, "codec", None)  # a user's own adapter may have none
        longest = self.cfg.max_txt_len
        if codec is None or longest is None or not prompt:
            return
        length = len(codec.leading) + len(codec.plain(prompt)) + len(codec.trailing)
        if length >= longest:
            raise ConfigError(
                f"The prompt is {length} tokens long, which leaves no room for a caption in "
                f"model.max_txt_len={longest}: {prompt[:60]!r}"
            )

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> Self:
        """Build tower, language model and bridge, then load `cfg.pretrained`.

        Args:
            parts: ``vision`` and ``language`` replace what would be built.
        """
        if parts.get("language") is None:
            cls.look(cfg)
        vision = parts["vision"] if parts.get("vision") is not None else build_tower(cfg)
        language = parts.get("language")
        if language is None:
            language = build_language(cfg.language)
            cls._check_kind(getattr(language, "kind", None), cfg)
        model = cls(cfg, vision=vision, language=language)
        model.initialise()
        return model

    def frozen_modules(self) -> Sequence[nn.Module]:
        frozen = super().frozen_modules()
        return (*frozen, self.language) if self.language_is_frozen else frozen

    def identity(self) -> dict[str, str]:
        name, known = self.cfg.language.name, super().identity()
        known["language_tokenizer"] = f"{name}@{_vocabulary(self.language.tokenizer)}"
        if all("lora_" in n for n, p in self.language.named_parameters() if p.requires_grad):
            known["language"] = f"{name}@{language_fingerprint(self.language)}"
        return known

    def check_identity(self, saved: Mapping[str, str]) -> None:
        # Quantised numbers are not those that the checkpoint was trained with, but mean the same.
        if self.cfg.language.quantization is not None:
            saved = {part: name for part, name in saved.items() if part != "language"}
        super().check_identity(saved)

    # ---- pictures as words

    def image_prefix(self, image: Any) -> tuple[Tensor, Tensor]:
        """Pictures -> rows for the language model [B, n, hidden_size], and their mask [B, n].

        Args:
            image: [B, 3, H, W]; several per sample as [B, N, 3, H, W] or a list of [N, 3, H, W].

        Raises:
            UserError: no pictures, another shape, or values that no image processor makes.
        """
        prefix, mask = self._look(image)
        return prefix, torch.ones_like(prefix[..., 0], dtype=torch.bool) if mask is None else mask

    def _look(self, image: Any) -> tuple[Tensor, Tensor | None]:
        """`image_prefix`, without a mask when all samples have equally many pictures."""
        found = pictures(image, check_values=not self.training)
        queries, _ = self.read_image(self._tokens(found))
        return found.per_sample(self.llm_proj(queries))

    def _tokens(self, found: Pictures) -> Tensor:
        size, built_for = list(found.pixels.shape[-2:]), self.cfg.vision.image_size
        try:
            return self.encode_image(found.pixels)
        except (AssertionError, RuntimeError, ValueError) as error:
            if size == [built_for, built_for]:
                raise
            raise UserError(
                f"image: '{self.cfg.vision.name}' was built for {built_for} pixels and cannot read "
                f"{size[0]} x {size[1]}. Set the image processor's image_size to {built_for}."
            ) from error


def _vocabulary(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that differ when a token id means something else."""
    pairs = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:12]
