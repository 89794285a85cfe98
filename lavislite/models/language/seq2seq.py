"""Encoder-decoder language models: the encoder reads image tokens and prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.adapter import HFLanguageModel
from lavislite.models.language.base import NLL, LanguageConfig
from lavislite.models.language.loading import load
from lavislite.models.language.packing import Packed, pack, pad_right, uneven
from lavislite.models.language.reading import Seq2SeqReading
from lavislite.models.language.tokens import PairTokens


class Seq2SeqLM(HFLanguageModel):
    """Any ``AutoModelForSeq2SeqLM`` whose encoder reads embeddings."""

    kind = "seq2seq"

    @property
    def decoder_start(self) -> int:
        """The token that the decoder begins with."""
        own = self.model.generation_config.decoder_start_token_id
        own = own if own is not None else self.model.config.decoder_start_token_id
        return self.codec.start if own is None else own

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
        """Negative log-likelihood of each target, its end token included, given image and prompt.

        Args:
            prefix: [B, n, hidden_size]; n may be 0. prefix_mask: [B, n], true where real.
            max_txt_len, max_output_txt_len: longest prompt and longest target, in tokens with begin
                and end, which stay when a text is cut; the second is the first when None.
            skip: so many first tokens of the target do not count.
            tokens: what ``texts.tokenise`` made of texts and limits, which are then not looked at.

        Raises:
            UserError: numbers of rows differ, or image and prompt do not fit the context.
        """
        limits = (max_txt_len, max_output_txt_len, skip)
        prefix, tokens = self.checked(prefix, prompts, targets, limits, tokens)
        packed = self._pack(prefix, tokens.ids, tokens.mask, prefix_mask)
        begun = F.pad(tokens.written[:, :-1], (1, 0), value=self.decoder_start)
        nll = self.score(
            tokens.rows * begun.shape[1] + tokens.positions,
            tokens,
            inputs_embeds=packed.embeds,
            attention_mask=packed.mask,
            decoder_input_ids=begun,
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
        """What the decoder writes for each prompt: ``len(prompts) * num_captions`` texts.

        Args: as of `nll`; a longer prompt is cut.

        Raises:
            UserError: numbers of rows differ, or image and prompt do not fit the context.
            ConfigError: an option cannot be.
        """
        self.check_batch(prefix, prompts)
        options = self.fit(options, 1)
        n, prefix = prefix.shape[1], self.adopt(prefix)
        texts = self.texts.prompts(prompts, n, max_txt_len)
        return self.write(prefix, texts, prefix_mask, options)

    def read(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> Seq2SeqReading:
        """Image and prompts, read once."""
        packed = self.packed(prefix, texts, prefix_mask)
        return Seq2SeqReading(self, packed.embeds, packed.mask if packed.padded else None)

    def packed(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> Packed:
        """What the encoder gets: image and prompts."""
        ids, mask = (x.to(prefix.device) for x in pad_right(texts, self.codec.pad))
        packed = self._pack(prefix, ids, mask, prefix_mask)
        return packed._replace(padded=prefix_mask is not None or uneven(texts))

    def _pack(
        self, prefix: Tensor, ids: Tensor, mask: Tensor, prefix_mask: Tensor | None
    ) -> Packed:
        with self.own_precision():
            return pack(prefix, self.embed(ids), mask, prefix_mask)


@catalog.language_models.register("seq2seq")
def build_seq2seq(cfg: LanguageConfig) -> nn.Module:
    """The encoder-decoder model in the folder, or of the hub id, ``cfg.name``."""
    return Seq2SeqLM(*load(cfg, "seq2seq"), cfg)
