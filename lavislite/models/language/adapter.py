"""What causal and encoder-decoder language models share: one dtype, one loss, one way to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import UserError
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.base import BITS, NLL, LanguageConfig
from lavislite.models.language.decode import write_on
from lavislite.models.language.extras import add_lora
from lavislite.models.language.library import write_by_library
from lavislite.models.language.packing import Packed
from lavislite.models.language.rank import rank_after, rank_by_nll
from lavislite.models.language.reading import Reading
from lavislite.models.language.text import TextCodec
from lavislite.models.language.tokens import PairTokeniser, PairTokens


class HFLanguageModel(nn.Module):
    """A language model of the transformers library behind a prefix of image tokens.

    model, tokenizer: the library's objects. hidden_size: width of the token embeddings.
    context_length: how many tokens it reads at most; None when there is no limit.
    frozen: no parameter of it trains. codec: how text becomes tokens. texts: makes the tokens of a
    batch, apart from the weights.
    """

    kind: str
    context_length: int | None

    def __init__(self, model: Any, tokenizer: Any, cfg: LanguageConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.name = cfg.name
        self.lora = cfg.lora is not None
        self.base_is_frozen = cfg.freeze or self.lora
        # Parts that the library has spread over devices, or quantized, stay as they are.
        self._placed = cfg.device_map is not None or cfg.quantization in BITS
        if self.base_is_frozen:
            model.requires_grad_(False)
        if cfg.lora is not None:
            add_lora(model, cfg.lora, cfg.name)
        self.codec = TextCodec(
            tokenizer, cfg.end, cfg.name, begins_with=_begins_with(model), stop=_stop_ids(model)
        )
        self.hidden_size: int = self.embedding.weight.shape[1]
        self.context_length = getattr(
            model.config.get_text_config(), "max_position_embeddings", None
        )
        self.texts = PairTokeniser(self.codec, self.kind, self.name, self.context_length)
        self.train(False)

    # ---- states

    @property
    def embedding(self) -> Any:
        return self.model.get_input_embeddings()

    @property
    def frozen(self) -> bool:
        """Whether nothing trains: neither its own weights nor adapters in it."""
        return self.base_is_frozen and not self.lora

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a generated text."""
        return self.codec.stop

    def train(self, mode: bool = True) -> HFLanguageModel:
        """Frozen weights stay in evaluation mode; the dropout of LoRA follows `mode`."""
        super().train(mode)
        if self.base_is_frozen:
            for name, module in self.model.named_modules():
                module.training = mode and "lora_" in name
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HFLanguageModel:
        return self if self._placed else super()._apply(fn, recurse)

    def own_precision(self) -> AbstractContextManager[Any]:
        """A frozen model computes in the type it is stored in, whatever the run's autocast."""
        kind = self.embedding.weight.device.type
        enabled = torch.is_autocast_enabled(kind) and not self.base_is_frozen
        return torch.autocast(kind, enabled=enabled)

    def embed(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, hidden_size]; families that scale their embeddings do it inside."""
        return self.embedding(ids)

    def adopt(self, prefix: Tensor) -> Tensor:
        """The prefix, on the device and in the type of the token embeddings."""
        weight = self.embedding.weight
        return prefix.to(weight.device, weight.dtype)

    # ---- loss

    def checked(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        targets: Sequence[str],
        limits: tuple[int | None, ...],
        tokens: PairTokens | None,
    ) -> tuple[Tensor, PairTokens]:
        """Prefix and tokens for `nll`, checked and on the model's device.

        Args:
            limits: max_txt_len, max_output_txt_len and skip of `nll`.
            tokens: None: of `prompts` and `targets`, which else are not looked at.

        Raises:
            UserError: numbers of rows differ, or they do not fit the context.
        """
        if tokens is None:
            self.check_batch(prefix, prompts, targets)
            tokens = self.texts.tokenise(prompts, targets, prefix.shape[1], *limits)
        self.check_tokens(prefix, tokens)
        prefix = self.adopt(prefix)
        return prefix, tokens.to(prefix.device)

    def score(self, flat: Tensor, tokens: PairTokens, **inputs: Any) -> NLL:
        """Row sums of -log p of the targets.

        Args:
            flat: [N], for each target the row of the decoder's flattened output [B * L, d] that
                predicts it; negative when nothing precedes the target, which then does not count.
        """
        with self.own_precision():
            logits, _ = self.run_at(flat.clamp(min=0), **inputs, use_cache=False)
        losses = F.cross_entropy(logits.float(), tokens.targets.to(logits.device), reduction="none")
        rows, counts = (x.to(logits.device) for x in (tokens.rows, (flat >= 0) & tokens.counts))
        total = losses.new_zeros(len(tokens)).index_add(0, rows, losses * counts)
        count = counts.new_zeros(len(tokens), dtype=torch.long).index_add(0, rows, counts.long())
        return NLL(total, count)

    def run_at(self, flat: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """The model's output, and logits [N, vocabulary] of the rows `flat` of its decoder.

        The other rows never meet the LM head.
        """
        with _only_rows(self.model.get_output_embeddings(), flat) as used:
            out = self.model(**inputs)
        logits = out.logits
        return logits[0] if used else logits.flatten(0, 1)[flat.to(logits.device)], out

    # ---- generation

    @cached_property
    def branches(self) -> bool:
        """Whether one reading of a prompt can go on in several branches."""
        from lavislite.models.language.branches import can_branch

        return can_branch(self.model)

    @cached_property
    def no_cache(self) -> Any:
        """Stands for a cache where nothing is kept; None if this model may not understand it."""
        from lavislite.models.language.branches import NoCache

        return NoCache() if self.branches else None

    def empty_cache(self) -> Any:
        """For a reading that goes on in branches; None leaves it to the model."""
        from lavislite.models.language.branches import empty_cache

        return empty_cache(self.model) if self.branches else None

    def write(
        self,
        prefix: Tensor,
        texts: Sequence[Sequence[int]],
        prefix_mask: Tensor | None,
        options: GenerationOptions,
    ) -> list[str]:
        """New text after each row of the prefix and the ids of its prompt."""
        from lavislite.models.language.branches import can_write

        if not options.lavis_lengths and not (self.branches and can_write(self.model)):
            ids = write_by_library(self, self.packed(prefix, texts, prefix_mask), options)
        else:
            ends = [self.codec.end] if options.lavis_lengths else self.stop_ids
            ids = write_on(self.read(prefix, texts, prefix_mask), options, ends=ends)
        return self.codec.decode(ids)

    @torch.no_grad()
    def rank(
        self,
        prefix: Tensor,
        prompts: Sequence[str],
        answers: Sequence[Sequence[str]],
        *,
        prefix_mask: Tensor | None = None,
        at_once: int = 128,
    ) -> list[Tensor]:
        """-log p of each answer, its end included, after each prompt: for n answers a tensor [n].

        They are the totals of `nll`, but prefix and prompt are read once for all answers.

        Args:
            prefix, prefix_mask: as of `nll`. at_once: so many answers are read at once.

        Raises:
            UserError: numbers of rows differ, or prefix and prompt do not fit the context.
        """
        self.check_batch(prefix, prompts)
        if not self.branches:
            mask = prefix_mask
            return rank_by_nll(self, prefix, prompts, answers, prefix_mask=mask, at_once=at_once)
        n, prefix = prefix.shape[1], self.adopt(prefix)
        read, choices = self.texts.choices(prompts, answers, n)
        reading = self.read(prefix, read, prefix_mask)
        return rank_after(reading, choices, at_once=at_once)

    def read(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> Reading:
        """Image and prompts, read once."""
        raise NotImplementedError

    def packed(
        self, prefix: Tensor, texts: Sequence[Sequence[int]], prefix_mask: Tensor | None
    ) -> Packed:
        """Image and prompts, for the library."""
        raise NotImplementedError

    def fit(self, options: GenerationOptions, length: int) -> GenerationOptions:
        """The options, with no more new tokens than the context has room for after `length`."""
        options.check()
        if self.context_length is None:
            return options
        most = min(options.max_new_tokens, self.context_length - length)
        least = min(options.min_new_tokens, most)
        return replace(options, max_new_tokens=most, min_new_tokens=least)

    def check_batch(self, prefix: Tensor, *texts: Sequence[str]) -> None:
        """Raise a UserError when prefix and texts are not for equally many rows."""
        if prefix.ndim != 3 or prefix.shape[-1] != self.hidden_size:
            raise UserError(
                f"prefix: '{self.name}' expects [B, n, {self.hidden_size}], got "
                f"{list(prefix.shape)}."
            )
        for rows in texts:
            if isinstance(rows, str) or len(rows) != len(prefix):
                got = "a single string" if isinstance(rows, str) else f"{len(rows)} texts"
                raise UserError(f"Expected a list of {len(prefix)} texts, one per row, got {got}.")

    def check_tokens(self, prefix: Tensor, tokens: PairTokens) -> None:
        """Raise a UserError when ready tokens do not belong to this prefix."""
        self.check_batch(prefix)
        length = prefix.shape[1] + tokens.ids.shape[1]
        if len(tokens) != len(prefix):
            raise UserError(f"Expected tokens of {len(prefix)} rows, got {len(tokens)}.")
        if self.context_length is not None and length > self.context_length:
            raise UserError(
                f"The tokens were made for a shorter prefix: with {prefix.shape[1]} rows before "
                f"them they are {length}, '{self.name}' reads {self.context_length} in all."
            )


@contextmanager
def _only_rows(head: nn.Module | None, flat: Tensor) -> Iterator[list[bool]]:
    """Let `head` see only the rows `flat` of its input; the list is filled when it did."""
    used: list[bool] = []
    if head is None:
        yield used
        return

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        used.append(True)
        return args[0].flatten(0, 1)[flat.to(args[0].device)][None], *args[1:]

    handle = head.register_forward_pre_hook(select)
    try:
        yield used
    finally:
        handle.remove()


def _begins_with(model: Any) -> int | None:
    """OPT was trained on texts that begin with </s>; not every copy of its tokenizer puts it."""
    return model.config.bos_token_id if model.config.model_type == "opt" else None


def _stop_ids(model: Any) -> Sequence[int]:
    """The end tokens that the model itself names; a chat model may have one of its own."""
    own = model.generation_config.eos_token_id
    return [] if own is None else own if isinstance(own, list) else [own]


def flat_rows(packed: Packed, tokens: PairTokens) -> Tensor:
    """For each target, the row of the flattened [B * L] that comes right before it; -1 for none."""
    before = packed.start[tokens.rows] + tokens.positions - 1
    return torch.where(before >= 0, tokens.rows * packed.mask.shape[1] + before, -1)
