"""The texts of stage 2's training: what is read, what is written, and what the Q-Former is asked.

`PairTexts` knows no weights, so that the processes that load batches can make their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavislite.common.errors import ConfigError
from lavislite.models.blip2.samples import (
    QUESTION,
    asked_of_all,
    has_pictures,
    one_each,
    pictures,
    split_text,
    without_prompt,
)
from lavislite.models.blip2.text import TextBatch, TextPacker
from lavislite.models.language.base import NLL
from lavislite.models.language.tokens import PairTokeniser, PairTokens


class Texts(NamedTuple):
    """What is read, what is to be written, and what the Q-Former is asked, of each sample."""

    prompts: list[str]
    targets: list[str]
    questions: Any
    longest: int | None  # tokens of prompt and target together, or of the prompt alone where ...
    longest_target: int | None = None  # ... this is given
    skip: int | None = None  # leading tokens that are no targets; None: those of the prompt


@dataclass
class Asked:
    """What a Q-Former that reads is asked: different questions, and which belongs to which picture.

    index: [m], for the picture in each place (see `Pictures`) the number of its question.
    """

    text: TextBatch
    index: Tensor

    @staticmethod
    def of(pack: TextPacker, questions: Sequence[str], counts: Sequence[int]) -> Asked:
        """The questions of samples that have so many pictures each."""
        number = {text: i for i, text in enumerate(dict.fromkeys(questions))}
        pairs = zip(questions, counts, strict=True)
        index = torch.tensor([number[q] for q, times in pairs for _ in range(times)])
        return Asked(pack(list(number)), index)

    def to(self, device: torch.device | str) -> Asked:
        return Asked(self.text.to(device), self.index.to(device, non_blocking=True))

    def pin_memory(self) -> Asked:
        return Asked(self.text.pin_memory(), self.index.pin_memory())


@dataclass
class ReadyTexts:
    """The texts of a batch as tokens. `asked` is None where the Q-Former does not read."""

    tokens: PairTokens
    asked: Asked | None

    def to(self, device: torch.device | str) -> ReadyTexts:
        return ReadyTexts(self.tokens.to(device), self.asked and self.asked.to(device))

    def pin_memory(self) -> ReadyTexts:
        return ReadyTexts(self.tokens.pin_memory(), self.asked and self.asked.pin_memory())


@dataclass
class PairTexts:
    """Makes `Texts` of samples, and tokens of those.

    cfg: a `Blip2LLMConfig`. kind: of the language model. tokeniser: its `texts`; None for an
    adapter of your own that takes nothing but strings. pack: the Q-Former's, when it reads.
    lavis_skip: leave out as many tokens as the prompt has by itself, as LAVIS does with OPT. With a
    space at its end that is one more than the caption has in its place; and without a prompt the
    begin token is a target.
    """

    cfg: Any
    kind: str
    tokeniser: PairTokeniser | None
    pack: TextPacker | None
    lavis_skip: bool

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A training batch with ``text_tokens``."""
        if batch.get("text_input") is None or not has_pictures(batch):
            return batch  # forward says what is missing
        counts = pictures(batch, check_values=False).counts
        return {**batch, "text_tokens": self.ready(self.texts(batch, len(counts), True), counts)}

    def texts(self, samples: Mapping[str, Any], count: int, at_random: bool) -> Texts:
        """See the model's `forward`. `at_random` splits captions anywhere instead of half-way."""
        given = one_each(samples["text_input"], count, "text_input")
        prompt = samples.get("prompt", self.cfg.prompt)
        prompts = one_each(prompt, count, "prompt")
        longest, longest_target = self.cfg.max_txt_len, self.cfg.max_output_txt_len
        if samples.get("text_output") is not None:
            pairs = zip(prompts, given, strict=True)
            read = [p.replace(QUESTION, text) if QUESTION in p else text for p, text in pairs]
            written = one_each(samples["text_output"], count, "text_output")
            asked = asked_of_all(samples, given)
            return Texts(read, written, asked, longest, longest_target or longest)
        if isinstance(prompt, str):
            self.check_room(prompt)
        asked = asked_of_all(samples, prompts)
        if self.kind == "seq2seq" and not any(prompts):
            parts = [split_text(text, at_random=at_random) for text in given]
            return Texts([read for read, _ in parts], [rest for _, rest in parts], asked, longest)
        targets = [without_prompt(t, p) for t, p in zip(given, prompts, strict=True)]
        return Texts(prompts, targets, asked, longest, skip=self._skip(prompts[0]))

    def ready(self, texts: Texts, counts: Sequence[int]) -> ReadyTexts:
        """The tokens of `texts`, of samples that have so many pictures each."""
        assert self.tokeniser is not None
        asked = None
        if self.pack is not None:
            questions = one_each(texts.questions, len(counts), "question")
            asked = Asked.of(self.pack, questions, counts)
        n_prefix = max(counts) * self.cfg.num_query_tokens
        limits = (texts.longest, texts.longest_target, texts.skip)
        return ReadyTexts(
            self.tokeniser.tokenise(texts.prompts, texts.targets, n_prefix, *limits), asked
        )

    def check_room(self, prompt: str) -> None:
        """Raise a ConfigError when `prompt` leaves no token of max_txt_len for a caption."""
        longest = self.cfg.max_txt_len
        if self.tokeniser is None or longest is None or not prompt:
            return
        codec = self.tokeniser.codec
        length = len(codec.leading) + len(codec.plain(prompt)) + len(codec.trailing)
        if length >= longest:
            raise ConfigError(
                f"The prompt is {length} tokens long, which leaves no room for a caption in "
                f"model.max_txt_len={longest}: {prompt[:60]!r}"
            )

    def _skip(self, prompt: str) -> int | None:
        if not self.lavis_skip or self.tokeniser is None:
            return None
        return len(self.tokeniser.codec.tokenizer(prompt)["input_ids"]) if prompt else 0


def nll_of_texts(language: Any, prefix: Tensor, mask: Tensor | None, texts: Texts) -> NLL:
    """The loss of an adapter that takes nothing but strings."""
    return language.nll(
        prefix,
        texts.prompts,
        texts.targets,
        prefix_mask=mask,
        max_txt_len=texts.longest,
        max_output_txt_len=texts.longest_target,
        skip=texts.skip,
    )
