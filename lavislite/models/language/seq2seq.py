"""Encoder-decoder language models: the encoder reads image tokens and prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.adapter import HFLanguageModel
from lavislite.models.language.base import NLL, LanguageConfig
from lavislite.models.language.decode import continue_seq2seq
from lavislite.models.language.loading import load
from lavislite.models.language.packing import Packed, Targets, pack, pad_right


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
    ) -> NLL:
        """Negative log-likelihood of each target, its end token included, given image and prompt.

        Args:
            prefix: [B, n, hidden_size]; n may be 0. prefix_mask: [B, n], true where real.
            max_txt_len, max_output_txt_len: longest prompt and longest target, in tokens with begin
                and end, which stay when a text is cut; the second is the first when None.
            skip: so many first tokens of the target do not count.

        Raises:
            UserError: numbers of rows differ, or image and prompt do not fit the context.
        """
        self.check_batch(prefix, prompts, targets)
        packed = self._read(prefix, prompts, prefix_mask, max_txt_len)
        longest = max_output_txt_len if max_output_txt_len is not None else max_txt_len
        texts = [self._target(target, longest) for target in targets]
        labels, _ = pad_right(texts, self.codec.pad, packed.embeds.device)
        wanted = Targets.of(texts, [skip or 0] * len(texts), labels.device)
        nll = self.score(
            wanted.rows * labels.shape[1] + wanted.positions,
            wanted,
            len(prefix),
            inputs_embeds=packed.embeds,
            attention_mask=packed.mask,
            decoder_input_ids=torch.nn.functional.pad(
                labels[:, :-1], (1, 0), value=self.decoder_start
            ),
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
        packed = self._read(prefix, prompts, prefix_mask, max_txt_len)
        if options.lavis_lengths:
            return continue_seq2seq(
                self, packed.embeds, packed.mask, options, begin=self.decoder_start
            )
        return self.write(packed.embeds, packed.mask, options, dropped=1)

    def _read(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        prefix_mask: Tensor | None,
        longest: int | None,
    ) -> Packed:
        """What the encoder gets: image tokens, then the prompts."""
        prefix, codec = self.adopt(prefix), self.codec
        texts = []
        for prompt in prompts:
            text = _cut(codec.begin(prompt), codec.plain(prompt), codec.trailing, longest)
            self.check_context(prefix.shape[1] + len(text) - 1)
            texts.append(text)
        ids, mask = pad_right(texts, codec.pad, prefix.device)
        with self.own_precision():
            return pack(prefix, self.embed(ids), mask, prefix_mask)

    def _target(self, target: str, longest: int | None) -> list[int]:
        limits = [x for x in (longest, self.context_length) if x is not None]
        codec = self.codec
        return _cut(codec.leading, codec.plain(target), [codec.end], min(limits, default=None))


def _cut(begin: list[int], ids: list[int], end: list[int], longest: int | None) -> list[int]:
    """All together, at most `longest` by leaving out the last of `ids`."""
    if longest is not None:
        ids = ids[: max(longest - len(begin) - len(end), 0)]
    return [*begin, *ids, *end]


@catalog.language_models.register("seq2seq")
def build_seq2seq(cfg: LanguageConfig) -> nn.Module:
    """The encoder-decoder model in the folder, or of the hub id, ``cfg.name``."""
    return Seq2SeqLM(*load(cfg, "seq2seq"), cfg)
