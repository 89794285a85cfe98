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
from lavislite.common.schema import Bounds, check_bounds
from lavislite.models.blip2.bridge import Blip2Bridge, BridgeConfig, build_tower, is_frozen
from lavislite.models.blip2.pairs import Asked, PairTexts
from lavislite.models.blip2.qformer import ImageMemory
from lavislite.models.blip2.samples import Pictures, one_each, pictures
from lavislite.models.blip2.text import TextPacker, build_tokenizer, tokenizer_identity
from lavislite.models.blip2.weights import look_for_text, run_tokenizer
from lavislite.models.language.base import (
    BITS,
    LanguageConfig,
    build_language,
    language_fingerprint,
    language_kind,
)
from lavislite.models.quantize import quantize
from lavislite.models.vision.base import QUANTIZATIONS

_ARCHS = {"causal": "blip2_opt", "seq2seq": "blip2_t5"}
_KINDS = {"causal": "a decoder-only model", "seq2seq": "an encoder-decoder"}


@dataclass
class Blip2LLMConfig(BridgeConfig):
    """Stage 2 of BLIP-2 with any language model.

    prompt: what comes before every caption; with ``{}`` for the question, the form of questions.
    max_txt_len: tokens of a caption with its prompt, or of a question.
    max_output_txt_len: tokens of ``text_output``; null is max_txt_len.
    qformer_text_input: the Q-Former reads the question too, so that its queries look where it
        points (BLIP-2, section 4.3). Its text branch comes from a stage-1 checkpoint.
    tokenizer: of the Q-Former, when it reads: as in stage 1; "auto" is the checkpoint's own.
    max_question_len: tokens that the Q-Former reads, with ``[CLS]`` and ``[SEP]``.
    """

    arch: str = "blip2_llm"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    prompt: str = ""
    max_output_txt_len: int | None = 128
    qformer_text_input: bool = False
    tokenizer: str = "auto"
    max_question_len: int = 32

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        super().check()
        positions = self.qformer.max_positions
        bounds: Bounds = {
            "max_txt_len": (2, None),
            "max_output_txt_len": (2, None),
            "max_question_len": (3, positions if self.qformer_text_input else None),
        }
        check_bounds("model", self, bounds)
        self.language.check()


class Blip2Language(Blip2Bridge):
    """Image tower, Q-Former and language model; the queries become its first words.

    Args:
        vision: see `Blip2Bridge`.
        language: from `build_language`; frozen when none of its parameters wants a gradient.
        tokenizer: from `build_tokenizer`, for a Q-Former that reads questions; else None.
    """

    Config: ClassVar[type[Any]] = Blip2LLMConfig
    takes: ClassVar[str | None] = None  # the kind of language model; None is any
    lavis_skip: ClassVar[bool] = False  # see `PairTexts`

    def __init__(
        self, cfg: Blip2LLMConfig, *, vision: nn.Module, language: Any, tokenizer: Any = None
    ) -> None:
        if cfg.qformer_text_input != (tokenizer is not None):
            raise ValueError("qformer_text_input and a tokenizer come together")
        words = None if tokenizer is None else len(tokenizer)
        super().__init__(cfg, vision=vision, vocab_size=words, queries_only=True)
        self.tokenizer = tokenizer
        if tokenizer is not None:
            longest = cfg.max_question_len
            self.pack = TextPacker(tokenizer, longest, "questions", "max_question_len")
        self.language = language
        self.llm_proj = nn.Linear(cfg.qformer.hidden_size, language.hidden_size)
        self.language_is_frozen = is_frozen(language)
        self.reader = PairTexts(
            cfg,
            language.kind,
            getattr(language, "texts", None),  # a user's own adapter may have none
            None if tokenizer is None else self.pack,
            self.lavis_skip,
        )
        self.start()
        self.reader.check_room(cfg.prompt)

    @classmethod
    def look(cls, cfg: Any) -> None:
        super().look(cfg)
        cls._check_kind(language_kind(cfg.language), cfg)
        if cfg.qformer_text_input:
            look_for_text(cfg.pretrained)

    @classmethod
    def _check_kind(cls, kind: str | None, cfg: Any) -> None:
        if cls.takes is not None and kind is not None and kind != cls.takes:
            raise ConfigError(
                f"model.language.name: '{cfg.language.name}' is {_KINDS[kind]}, "
                f"{cfg.arch} speaks through {_KINDS[cls.takes]}. Set model.arch={_ARCHS[kind]}, "
                "or blip2_llm, which takes both."
            )

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> Self:
        """Build tower, language model and bridge, then load `cfg.pretrained`.

        Args:
            parts: ``vision``, ``language`` and ``tokenizer`` replace what would be built;
                ``captions`` (an iterable of texts) are for a vocabulary that has to be made.
        """
        if parts.get("language") is None:
            cls.look(cfg)
        vision = parts["vision"] if parts.get("vision") is not None else build_tower(cfg)
        language = parts.get("language")
        if language is None:
            language = build_language(cfg.language)
            cls._check_kind(getattr(language, "kind", None), cfg)
        tokenizer = reading_tokenizer(cfg, **parts) if cfg.qformer_text_input else None
        model = cls(cfg, vision=vision, language=language, tokenizer=tokenizer)
        model.initialise()
        return model

    def quantize(self) -> None:
        super().quantize()
        language, kind = self.language, self.cfg.language.quantization
        if kind in QUANTIZATIONS:
            key, digits = "model.language.quantization", language_fingerprint(language)
            quantize(language, kind, key, fingerprint=digits, gradients=True)

    def frozen_modules(self) -> Sequence[nn.Module]:
        frozen = super().frozen_modules()
        return (*frozen, self.language) if self.language_is_frozen else frozen

    def towers(self) -> Sequence[nn.Module]:
        return (*super().towers(), self.language)

    def text_preparer(self) -> PairTexts | None:
        return None if self.reader.tokeniser is None else self.reader

    def pad_texts_to(self, multiple: int) -> None:
        if self.reader.tokeniser is not None:
            self.reader.tokeniser.pad_to_multiple = multiple
        if self.tokenizer is not None:
            self.pack.multiple = multiple

    def identity(self) -> dict[str, str]:
        name, known = self.cfg.language.name, super().identity()
        known["language_tokenizer"] = f"{name}@{_vocabulary(self.language.tokenizer)}"
        if self.tokenizer is not None:
            known["tokenizer"] = tokenizer_identity(self.tokenizer)
        if all("lora_" in n for n, p in self.language.named_parameters() if p.requires_grad):
            known["language"] = f"{name}@{language_fingerprint(self.language)}"
        return known

    def check_identity(self, saved: Mapping[str, str]) -> None:
        # Quantised numbers are not those that the checkpoint was trained with, but mean the same.
        if self.cfg.language.quantization in BITS:
            saved = {part: name for part, name in saved.items() if part != "language"}
        super().check_identity(saved)

    # ---- pictures as words

    def image_prefix(self, image: Any, question: str | Sequence[str] = "") -> tuple[Tensor, Tensor]:
        """Pictures -> rows for the language model [B, n, hidden_size], and their mask [B, n].

        Args:
            image: [B, 3, H, W]; several per sample as [B, N, 3, H, W] or a list of [N, 3, H, W].
                One picture for all, as ``picture.expand(B, -1, -1, -1)``, is looked at once.
            question: what is asked of all, or of each of the B samples; only a model with
                `qformer_text_input` cares.

        Raises:
            UserError: no pictures, another shape, values that no image processor makes, or another
                number of questions.
        """
        found = pictures({"image": image}, check_values=not self.training)
        prefix, mask = self._look(found, question)
        return prefix, torch.ones_like(prefix[..., 0], dtype=torch.bool) if mask is None else mask

    def with_features(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """`samples` with the tower's output for ``image``, so that several calls can share it.

        Args:
            samples: ``image`` [B, 3, H, W], or [U, 3, H, W] and ``image_index`` [B].

        Raises:
            UserError: as of `image_prefix`.
        """
        found = pictures({"image": samples["image"]}, check_values=not self.training)
        others = {key: value for key, value in samples.items() if key != "image"}
        return {**others, "image_features": found.in_places(self._features(found))}

    def _look(self, found: Pictures, question: Any) -> tuple[Tensor, Tensor | None]:
        """`image_prefix`, without a mask when all samples have equally many pictures.

        Whatever does not depend on the question is computed once for each different picture.
        """
        memory = self.memory_of(self.tokens_of(self._features(found)))
        if self.tokenizer is None:
            queries, _ = self.Qformer.encode_queries(self.query_tokens, memory)
            return found.per_sample(found.in_places(self.llm_proj(queries)))
        if found.shows is not None:
            memory = memory.select(found.shows.to(self.device))
        return found.per_sample(self.llm_proj(self._read(memory, question, found)))

    def _read(self, memory: ImageMemory, question: Any, found: Pictures) -> Tensor:
        """Query rows [m, Q, d] of the picture in each place with the question of its sample."""
        asked = question
        if not isinstance(asked, Asked):
            questions = one_each(question, len(found.counts), "question")
            asked = Asked.of(self.pack, questions, found.counts)
        text, index = asked.text.to(self.device), asked.index.to(self.device)
        return self.Qformer.encode_pairs(
            self.query_tokens, text.ids, text.mask, memory, text_index=index
        )

    def _features(self, found: Pictures) -> Tensor:
        """What the tower says of the different pictures [n, T, C]."""
        if found.pixels is None:
            return self.features_of({"image_features": found.features})
        size, built_for = list(found.pixels.shape[-2:]), self.cfg.vision.image_size
        try:
            return self.tower_features(found.pixels)
        except (AssertionError, RuntimeError, ValueError) as error:
            if size == [built_for, built_for]:
                raise
            raise UserError(
                f"image: '{self.cfg.vision.name}' was built for {built_for} pixels and cannot read "
                f"{size[0]} x {size[1]}. Set the image processor's image_size to {built_for}."
            ) from error


def reading_tokenizer(
    cfg: Blip2LLMConfig, tokenizer: Any = None, captions: Any = None, **_: Any
) -> Any:
    """The Q-Former's tokenizer: the one given, a checkpoint's, or as ``cfg.tokenizer`` says."""
    if tokenizer is not None:
        return tokenizer
    kept = run_tokenizer(cfg.pretrained) if cfg.tokenizer == "auto" else None
    return build_tokenizer(kept or cfg.tokenizer, captions)


def _vocabulary(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that differ when a token id means something else."""
    pairs = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:12]
