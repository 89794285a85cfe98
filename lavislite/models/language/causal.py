"""Decoder-only language models: image tokens, prompt and target are one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.adapter import HFLanguageModel, flat_rows
from lavislite.models.language.base import NLL, LanguageConfig
from lavislite.models.language.loading import load
from lavislite.models.language.packing import Packed, pack, pad_right, repeated_rows, uneven
from lavislite.models.language.reading import CausalReading
from lavislite.models.language.tokens import PairTokens


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
        tokens: PairTokens | None = None,
    ) -> NLL:
        """Negative log-likelihood of each target, its end token included, after its prompt.

        Args:
            prefix: [B, n, hidden_size]; n may be 0. prefix_mask: [B, n], true where real.
            max_txt_len: longest text in tokens: prompt and target together, or the prompt alone
                when `max_output_txt_len` is given. A target that is cut has no end token.
            skip: so many tokens of the text, the begin token among them, are no targets; None skips
                begin token and prompt.
            tokens: what ``texts.tokenise`` made of texts and limits, which are then not looked at.

        Raises:
            UserError: numbers of rows differ, or prefix and prompt do not fit the context.
        """
        limits = (max_txt_len, max_output_txt_len, skip)
        prefix, tokens = self.checked(prefix, prompts, targets, limits, tokens)
        # Padding comes last, where no real token sees it: attention needs no mask.
        packed = self._pack(prefix, tokens.ids, tokens.mask, prefix_mask, left=False)
        inputs = {"inputs_embeds": packed.embeds, "past_key_values": self.no_cache}
        nll = self.score(flat_rows(packed, tokens), tokens, **inputs)
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
        # A space belongs to the word to come; LAVIS left it with the prompt.
        bare = prompts if options.lavis_lengths else [prompt.rstrip(" ") for prompt in prompts]
        texts = self.texts.prompts(bare, n, max_txt_len)
        options = self.fit(options, n + max(map(len, texts), default=0))
        return self.write(prefix, texts, prefix_mask, options)

    def read(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> CausalReading:
        """Image and prompts, read once; an image in several rows in a row is read once for all."""
        rows = repeated_rows(prefix) if prefix_mask is None and self.gaps and all(texts) else None
        if rows is None:
            packed = self.packed(prefix, texts, prefix_mask)
            return CausalReading(self, packed.embeds, packed.mask if packed.padded else None)
        first = [row for row in range(len(rows)) if row == 0 or rows[row] != rows[row - 1]]
        images = CausalReading(self, prefix[first], None)
        packed = self.packed(prefix[:, :0], texts, None)
        mask = packed.mask if packed.padded else None
        return CausalReading(self, packed.embeds, mask, after=images, rows=rows)

    def packed(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> Packed:
        """Image and prompts, padded at the left."""
        ids, mask = (x.to(prefix.device) for x in pad_right(texts, self.codec.pad))
        packed = self._pack(prefix, ids, mask, prefix_mask, left=True)
        return packed._replace(padded=prefix_mask is not None or uneven(texts))

    @cached_property
    def gaps(self) -> bool:
        """Whether padding may stand between image and prompt."""
        from lavislite.models.language.branches import can_skip

        return can_skip(self.model)

    def _pack(
        self, prefix: Tensor, ids: Tensor, mask: Tensor, prefix_mask: Tensor | None, *, left: bool
    ) -> Packed:
        with self.own_precision():
            return pack(prefix, self.embed(ids), mask, prefix_mask, left=left)


@catalog.language_models.register("causal")
def build_causal(cfg: LanguageConfig) -> nn.Module:
    """The decoder-only model in the folder, or of the hub id, ``cfg.name``."""
    return CausalLM(*load(cfg, "causal"), cfg)
