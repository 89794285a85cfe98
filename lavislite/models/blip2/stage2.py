"""BLIP-2 stage 2: what the Q-Former reads becomes the first words of a frozen language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from lavislite.common import catalog, distributed
from lavislite.models.blip2.calls import require_keys
from lavislite.models.blip2.pairs import nll_of_texts
from lavislite.models.blip2.samples import has_pictures, pictures
from lavislite.models.blip2.stage2_base import Blip2LLMConfig
from lavislite.models.blip2.writing import Blip2Writer
from lavislite.models.language.base import NLL, LanguageConfig

__all__ = ["Blip2LLM", "Blip2LLMConfig", "Blip2OPT", "Blip2OPTConfig", "Blip2T5", "Blip2T5Config"]


_NEEDED = ("image", "text_input")


@catalog.models.register("blip2_llm")
class Blip2LLM(Blip2Writer):
    """Stage 2 with any language model; `forward` computes its loss."""

    family: ClassVar[str] = "llm"  # how LAVIS names its parts

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Mean negative log-likelihood of the target tokens.

        Args:
            samples: ``image`` (see `image_prefix`; or ``image_features``, see `pictures`) and
                ``text_input``, b strings: captions, written after `cfg.prompt` or
                ``samples["prompt"]``. With ``text_output`` (b strings), those are written after
                ``text_input``, put into the prompt where it has ``{}``. An encoder-decoder without
                prompt reads the first words of a caption and writes the others. With
                `qformer_text_input` the Q-Former reads ``question``, else the ``text_input`` that
                an answer belongs to, else the prompt of captions.

        Returns:
            loss. With several processes, the *mean* over them is the loss of the whole batch.
        """
        what = f"training {type(self).__name__}"
        require_keys(samples, ("text_input",) if has_pictures(samples) else _NEEDED, what)
        found = pictures(samples, check_values=not self.training)
        ready = samples.get("text_tokens")
        if ready is None:
            texts = self.reader.texts(samples, len(found.counts), at_random=self.training)
            if self.reader.tokeniser is None:
                prefix, mask = self._look(found, texts.questions)
                return self._mean(nll_of_texts(self.language, prefix, mask, texts))
            ready = self.reader.ready(texts, found.counts)
        prefix, mask = self._look(found, ready.asked)
        return self._mean(self.language.nll(prefix, (), (), prefix_mask=mask, tokens=ready.tokens))

    def _mean(self, nll: NLL) -> dict[str, Tensor]:
        count = nll.count.sum().float()
        if self.training and distributed.world_size() > 1:
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return {"loss": nll.total.sum() / count.clamp_min(1)}


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
    lavis_skip = True


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
