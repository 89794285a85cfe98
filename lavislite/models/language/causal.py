"""Decoder-only language models: image tokens, prompt and target are one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.adapter import HFLanguageModel, flat_rows
from lavislite.models.language.base import NLL, LanguageConfig
from lavislite.models.language.decode import continue_causal
from lavislite.models.language.loading import load
from lavislite.models.language.packing import Packed, Targets, pack, pad_right


class CausalLM(HFLanguageModel):
    """Any ``AutoModelForCausalLM`` that reads embeddings."""

    kind = "causal"

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
    ) -> NLL:
        """Negative log-likelihood of each target, its end token included, after its prompt.

        Args:
            prefix: [B, n, hidden_size]; n may be 0. prefix_mask: [B, n], true where real.
            max_txt_len: longest text in tokens: prompt and target together, or the prompt alone
                when `max_output_txt_len` is given. A target that is cut has no end token.
            skip: so many tokens of the text, the begin token among them, are no targets; None skips
                begin token and prompt.

        Raises:
            UserError: numbers of rows differ, or prefix and prompt do not fit the context.
        """
        self.check_batch(prefix, prompts, targets)
        n, prefix = prefix.shape[1], self.adopt(prefix)
        texts, first = [], []
        for prompt, target in zip(prompts, targets, strict=True):
            before, after = self._pair(prompt, target, n, max_txt_len, max_output_txt_len)
            texts.append(before + after)
            first.append(len(before) if skip is None else skip)
        packed = self._pack(prefix, texts, prefix_mask, left=False)
        wanted = Targets.of(texts, first, packed.embeds.device)
        flat = flat_rows(packed, wanted)
        nll = self.score(
            flat, wanted, len(prefix), inputs_embeds=packed.embeds, attention_mask=packed.mask
        )
        return NLL(*(part.to(prefix.device) for part in nll))

    @torch.no_grad()
    def generate(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        prefix_mask: Tensor | None = None,
        max_txt_len: int | None = None,
    ) -> list[str]:
        """What the model writes after each prompt: ``len(prompts) * num_captions`` texts.

        Args: as of `nll`; a longer prompt is cut.

        Raises:
            UserError: numbers of rows differ, or prefix and prompt do not fit the context.
            ConfigError: an option cannot be.
        """
        self.check_batch(prefix, prompts)
        n, prefix = prefix.shape[1], self.adopt(prefix)
        texts = []
        for prompt in prompts:
            # A space belongs to the word to come; LAVIS left it with the prompt.
            bare = prompt if options.lavis_lengths else prompt.rstrip(" ")
            ids = [*self._begin(prompt, n), *self.codec.plain(bare)][:max_txt_len]
            self.check_context(n + len(ids))
            texts.append(ids)
        options = self.fit(options, n + max(map(len, texts), default=0))
        packed = self._pack(prefix, texts, prefix_mask, left=True)
        if options.lavis_lengths:
            return continue_causal(self, packed.embeds, packed.mask, options)
        return self.write(packed.embeds, packed.mask, options, dropped=0)

    def _begin(self, prompt: str, n: int) -> list[int]:
        """What precedes the prompt; without an image there must be something to go on from."""
        begin = self.codec.begin(prompt)
        return begin if begin or n or prompt else [self.codec.start]

    def _pair(
        self, prompt: str, target: str, n: int, longest: int | None, longest_target: int | None
    ) -> tuple[list[int], list[int]]:
        """Ids of what precedes the target, and of the target, cut to the lengths allowed."""
        prompt, target = self.codec.split(prompt, target)
        before = [*self._begin(prompt, n), *self.codec.plain(prompt)]
        after = [*self.codec.plain(target), self.codec.end][:longest_target]
        if longest is not None and longest_target is not None:
            before = before[:longest]
        elif longest is not None:
            before = before[: max(longest - 1, 0)]  # at least one token to learn from
            after = after[: longest - len(before)]
        self.check_context(n + len(before))
        if self.context_length is not None:
            after = after[: self.context_length - n - len(before)]
        return before, after

    def _pack(
        self, prefix: Tensor, texts: list[list[int]], prefix_mask: Tensor | None, *, left: bool
    ) -> Packed:
        ids, mask = pad_right(texts, self.codec.pad, prefix.device)
        with self.own_precision():
            return pack(prefix, self.embed(ids), mask, prefix_mask, left=left)


@catalog.language_models.register("causal")
def build_causal(cfg: LanguageConfig) -> nn.Module:
    """The decoder-only model in the folder, or of the hub id, ``cfg.name``."""
    return CausalLM(*load(cfg, "causal"), cfg)
