"""BLIP-2 stage 2: what the Q-Former reads becomes the first words of a frozen language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from lavislite.common import catalog, distributed
from lavislite.models.blip2.calls import require_keys
from lavislite.models.blip2.samples import (
    QUESTION,
    asked_of_all,
    one_each,
    pictures,
    split_text,
    without_prompt,
)
from lavislite.models.blip2.stage2_base import Blip2LLMConfig
from lavislite.models.blip2.writing import Blip2Writer
from lavislite.models.language.base import LanguageConfig

__all__ = ["Blip2LLM", "Blip2LLMConfig", "Blip2OPT", "Blip2OPTConfig", "Blip2T5", "Blip2T5Config"]


class Texts(NamedTuple):
    """What is read, what is to be written, and what the Q-Former is asked, of each sample."""

    prompts: list[str]
    targets: list[str]
    questions: list[str]
    skip: int | None = None  # leading tokens that are no targets; None: those of the prompt


@catalog.models.register("blip2_llm")
class Blip2LLM(Blip2Writer):
    """Stage 2 with any language model; `forward` computes its loss."""

    family: ClassVar[str] = "llm"  # how LAVIS names its parts

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Mean negative log-likelihood of the target tokens.

        Args:
            samples: ``image`` (see `image_prefix`) and ``text_input``, b strings: captions, written
                after `cfg.prompt` or ``samples["prompt"]``. With ``text_output`` (b strings), those
                are written after ``text_input``, put into the prompt where it has ``{}``. An
                encoder-decoder without prompt reads the first words of a caption and writes the
                others. With `qformer_text_input` the Q-Former reads ``question``, else the
                ``text_input`` that an answer belongs to, else the prompt of captions.

        Returns:
            loss. With several processes, the *mean* over them is the loss of the whole batch.
        """
        require_keys(samples, ("image", "text_input"), f"training {type(self).__name__}")
        found = pictures(samples["image"], check_values=not self.training)
        texts = self._texts(samples, len(found.counts))
        prefix, mask = self._look(found, asked_of_all(samples, texts.questions))
        answers = samples.get("text_output") is not None
        longest = self.cfg.max_txt_len
        nll = self.language.nll(
            prefix,
            texts.prompts,
            texts.targets,
            prefix_mask=mask,
            max_txt_len=longest,
            max_output_txt_len=(self.cfg.max_output_txt_len or longest) if answers else None,
            skip=texts.skip,
        )
        count = nll.count.sum().float()
        if self.training and distributed.world_size() > 1:
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return {"loss": nll.total.sum() / count.clamp_min(1)}

    def _texts(self, samples: dict[str, Any], count: int) -> Texts:
        given = one_each(samples["text_input"], count, "text_input")
        prompt = samples.get("prompt", self.cfg.prompt)
        prompts = one_each(prompt, count, "prompt")
        if samples.get("text_output") is not None:
            pairs = zip(prompts, given, strict=True)
            read = [p.replace(QUESTION, text) if QUESTION in p else text for p, text in pairs]
            return Texts(read, one_each(samples["text_output"], count, "text_output"), given)
        if isinstance(prompt, str):
            self._check_room(prompt)
        if self.language.kind == "seq2seq" and not any(prompts):
            parts = [split_text(text, at_random=self.training) for text in given]
            return Texts([read for read, _ in parts], [written for _, written in parts], prompts)
        targets = [without_prompt(t, p) for t, p in zip(given, prompts, strict=True)]
        return Texts(prompts, targets, prompts, self._skip(prompts))

    def _skip(self, prompts: list[str]) -> int | None:  # noqa: ARG002
        return None


@dataclass
class Blip2OPTConfig(Blip2LLMConfig):
    """LAVIS's model with OPT: captions end with a line break."""

    arch: str = "blip2_opt"
    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(name="facebook/opt-2.7b", end="\n")
    )
    max_output_txt_len: int | None = None


@catalog.models.register("blip2_opt")
class Blip2OPT(Blip2LLM):
    """`Blip2LLM` with LAVIS's defaults and habits for OPT."""

    Config = Blip2OPTConfig
    family = "opt"
    takes = "causal"
    lavis_start_tokens = 1
    answer_length_penalty = 0.0
    cuts_prompts = True

    def _skip(self, prompts: list[str]) -> int:
        """LAVIS skips as many tokens as the prompt has by itself.

        With a space at its end that is one more than the caption has in its place; and without a
        prompt the begin token is a target.
        """
        return len(self.language.tokenizer(prompts[0])["input_ids"]) if prompts[0] else 0


@dataclass
class Blip2T5Config(Blip2LLMConfig):
    """LAVIS's model with Flan-T5."""

    arch: str = "blip2_t5"
    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(name="google/flan-t5-xl")
    )
    max_output_txt_len: int | None = None


@catalog.models.register("blip2_t5")
class Blip2T5(Blip2LLM):
    """`Blip2LLM` with LAVIS's defaults for Flan-T5."""

    Config = Blip2T5Config
    family = "t5"
    takes = "seq2seq"
