"""What causal and encoder-decoder language models share: one dtype, one loss, one way to write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import UserError
from lavislite.common.generation import GenerationOptions
from lavislite.models.language.base import NLL, LanguageConfig
from lavislite.models.language.extras import add_lora
from lavislite.models.language.packing import Packed, Targets
from lavislite.models.language.text import TextCodec


class HFLanguageModel(nn.Module):
    """A language model of the transformers library behind a prefix of image tokens.

    model, tokenizer: the library's objects. hidden_size: width of the token embeddings.
    context_length: how many tokens it reads at most; None when there is no limit.
    frozen: no parameter of it trains. codec: how text becomes tokens.
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
        self._placed = cfg.device_map is not None or cfg.quantization is not None
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

    def score(self, flat: Tensor, targets: Targets, batch: int, **inputs: Any) -> NLL:
        """Row sums of -log p of the targets.

        Args:
            flat: [N], for each target the row of the decoder's flattened output [B * L, d] that
                predicts it; negative when nothing precedes the target, which then does not count.
        """
        counts = flat >= 0
        with self.own_precision():
            logits = self._logits_at(flat.clamp(min=0), **inputs)
        losses = F.cross_entropy(logits.float(), targets.ids.to(logits.device), reduction="none")
        rows, counts = targets.rows.to(logits.device), counts.to(logits.device)
        total = losses.new_zeros(batch).index_add(0, rows, losses * counts)
        count = counts.new_zeros(batch, dtype=torch.long).index_add(0, rows, counts.long())
        return NLL(total, count)

    def _logits_at(self, flat: Tensor, **inputs: Any) -> Tensor:
        """Logits [N, vocabulary] of the rows `flat`; the other rows never meet the LM head."""
        with _only_rows(self.model.get_output_embeddings(), flat) as used:
            logits = self.model(**inputs, use_cache=False).logits
        return logits[0] if used else logits.flatten(0, 1)[flat.to(logits.device)]

    # ---- generation

    def write(
        self, embeds: Tensor, mask: Tensor, options: GenerationOptions, dropped: int
    ) -> list[str]:
        """Let the library generate after embeds [B, L, d]; `dropped` ids lead its output."""
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

        sampling = options.use_nucleus_sampling
        drawing = {"top_p": options.top_p, "temperature": options.temperature, "top_k": 0}
        beams = {"length_penalty": options.length_penalty, "early_stopping": False}
        processors = LogitsProcessorList()
        if options.repetition_penalty != 1.0:
            # The library's own would skip as many new tokens as a row has padding.
            processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        with torch.no_grad(), self.own_precision(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
            ids = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                do_sample=sampling,
                num_beams=1 if sampling else options.num_beams,
                max_new_tokens=options.max_new_tokens,
                min_new_tokens=options.min_new_tokens,
                repetition_penalty=1.0,
                no_repeat_ngram_size=options.no_repeat_ngram_size,
                num_return_sequences=options.num_captions,
                eos_token_id=self.stop_ids,
                pad_token_id=self.codec.pad,
                logits_processor=processors,
                return_dict_in_generate=False,
                synced_gpus=False,  # under FSDP too every process writes its own rows, by itself
                **(drawing if sampling else {}),
                **(beams if not sampling and options.num_beams > 1 else {}),
            )
        return self.codec.decode(ids[:, dropped:])

    def fit(self, options: GenerationOptions, length: int) -> GenerationOptions:
        """The options, with no more new tokens than the context has room for after `length`."""
        options.check()
        if self.context_length is None:
            return options
        most = min(options.max_new_tokens, self.context_length - length)
        least = min(options.min_new_tokens, most)
        return replace(options, max_new_tokens=most, min_new_tokens=least)

    def check_context(self, length: int, what: str = "prompt") -> None:
        """Raise a UserError when `length` tokens leave no room in the context."""
        if self.context_length is not None and length >= self.context_length:
            raise UserError(
                f"The {what} is too long for '{self.name}': with the image it is {length} tokens, "
                f"the model reads {self.context_length} in all. Shorten it, or set max_txt_len."
            )

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


def flat_rows(packed: Packed, targets: Targets) -> Tensor:
    """For each target, the row of the flattened [B * L] that comes right before it; -1 for none."""
    before = packed.start[targets.rows] + targets.positions - 1
    return torch.where(before >= 0, targets.rows * packed.mask.shape[1] + before, -1)
