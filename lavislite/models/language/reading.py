"""Reading prompts once, and going on from them in one branch or in many."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Reading:
    """What a language model knows after the prompts of B rows, and of branches after them.

    logits: [B, vocabulary] for the first new token. begin: stands before the new tokens.
    begin_is_seen: by the rules against repetition.
    """

    logits: Tensor
    begin: int
    begin_is_seen: bool

    def __init__(self, language: Any) -> None:
        self.language = language

    def _start(self, last: Tensor, cache: Any, **inputs: Any) -> None:
        """Run the model on the prompts; `last` [B]: rows of its flattened output to go on from."""
        with torch.no_grad(), self.language.own_precision():
            logits, out = self.language.run_at(
                last, **inputs, past_key_values=cache, use_cache=True
            )
        self.logits, self._cache = logits.to(last.device), out.past_key_values
        self._branches: Any = None
        if cache is not None:
            from lavislite.models.language.branches import BranchCache

            self._branches = BranchCache(self._cache)

    def branch(self, rows: Sequence[int], past: list[Tensor] | None = None) -> None:
        """Begin N branches; number n goes on after row ``rows[n]``.

        Args:
            past: what the branches have read already, as `past` gave it.
        """
        index = torch.tensor(rows, device=self.logits.device)
        self._seen = 0 if past is None else past[0].shape[2]
        self._take(index)
        if self._branches is None:
            self._cache.reorder_cache(index)
        else:
            self._branches.branch(rows, past)
            self._cache = self._branches.cache

    def reorder(self, parents: Tensor) -> None:
        """Branch n goes on from branch ``parents[n]``, which began after the same prompt."""
        (self._cache.reorder_cache if self._branches is None else self._branches.reorder)(parents)

    def past(self, rows: slice) -> list[Tensor]:
        """What these branches have read since they began; only of a model that can branch."""
        return list(self._branches.past(rows))

    def read(self, ids: Tensor) -> Tensor:
        """The next token of each branch [N, 1] -> scores of the one after it [N, vocabulary]."""
        inputs = self._inputs(ids)
        self._seen += 1
        with torch.no_grad(), self.language.own_precision():
            out = self.language.model(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits.to(self.logits.device)

    def _take(self, index: Tensor) -> None:
        """Keep, of what `_inputs` needs, the rows `index`."""
        raise NotImplementedError

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        raise NotImplementedError


class CausalReading(Reading):
    """Of embeds [B, L, d], padded at the left; mask [B, L] is None when there is no padding.

    Args:
        after, rows: embeds go on after rows ``rows[b]`` of another reading, which had no padding.
    """

    begin_is_seen = False
    _length: int

    def __init__(
        self,
        language: Any,
        embeds: Tensor,
        mask: Tensor | None,
        after: CausalReading | None = None,
        rows: Sequence[int] = (),
    ) -> None:
        super().__init__(language)
        self.begin = language.codec.pad
        self._own_positions = "position_ids" in inspect.signature(language.model.forward).parameters
        (batch, length), device = embeds.shape[:2], embeds.device
        cache, before = language.empty_cache(), 0
        if after is not None:
            after.branch(rows)
            cache, before = after._cache, after._length
        self._length = before + length
        self._lengths = torch.full((batch,), self._length, device=device)
        positions = torch.arange(length, device=device).expand(batch, -1)
        self._mask = mask
        if mask is not None:
            self._lengths = mask.sum(1) + before
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            self._mask = F.pad(mask, (before, 0), value=1)
        self._start(
            torch.arange(1, batch + 1, device=device) * length - 1,
            cache,
            inputs_embeds=embeds,
            attention_mask=self._mask,
            **self._positions(positions + before),
        )

    def _positions(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if self._own_positions else {}

    def _take(self, index: Tensor) -> None:
        self._length_of = self._lengths[index][:, None]
        self._mask_of = None if self._mask is None else self._mask[index]

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        mask = self._mask_of
        if mask is not None:
            mask = F.pad(mask, (0, self._seen + 1), value=1)
        positions = self._positions(self._length_of + self._seen)
        return {"input_ids": ids, "attention_mask": mask, **positions}


class Seq2SeqReading(Reading):
    """Of what the encoder reads: embeds [B, L, d]; mask [B, L] is None when there is no padding."""

    begin_is_seen = True

    def __init__(self, language: Any, embeds: Tensor, mask: Tensor | None) -> None:
        super().__init__(language)
        self.begin = language.decoder_start
        with torch.no_grad(), language.own_precision():
            encoded = language.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        self._output, self._hidden = type(encoded), encoded.last_hidden_state
        self._mask = mask
        rows = torch.arange(len(embeds), device=embeds.device)
        self._take(rows)
        begin = torch.full_like(rows, self.begin)[:, None]
        self._start(rows, language.empty_cache(), **self._inputs(begin))

    def _take(self, index: Tensor) -> None:
        hidden = self._hidden.index_select(0, index.to(self._hidden.device))
        self._encoded = self._output(last_hidden_state=hidden)
        self._mask_of = None if self._mask is None else self._mask[index]

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        return {
            "encoder_outputs": self._encoded,
            "attention_mask": self._mask_of,
            "decoder_input_ids": ids,
        }
