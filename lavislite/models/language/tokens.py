"""Texts to tokens, apart from the weights: what a loading worker can do for a language model.

``language.texts`` is a light, picklable `PairTokeniser`. What its `tokenise` returns, a
`PairTokens`, travels with the batch (`to`, `pin_memory`) and is handed to
``language.nll(prefix, (), (), tokens=...)``, which then reads no text:

    tokens = language.texts.tokenise(prompts, targets, prefix.shape[1], max_txt_len=32)
    nll = language.nll(prefix, (), (), tokens=tokens)

For compiled code, which wants few shapes, set ``language.texts.pad_to_multiple``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from lavislite.common.errors import UserError
from lavislite.models.language.packing import pad_right
from lavislite.models.language.text import TextCodec


@dataclass
class PairTokens:
    """Prompts and targets of B samples as token ids, padded on the right.

    ids, mask: [B, T] what is read, mask true where real: prompt and target in one row by a causal
        model, the prompt by an encoder.
    written: [B, W] the targets, for a decoder; equal to `ids` for a causal model.
    rows, positions, targets: [N] each target token: its sample, its place in `written`, its id.
    counts: [N] true but for padding.
    """

    ids: Tensor
    mask: Tensor
    written: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> PairTokens:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> PairTokens:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PairTokens:
        return PairTokens(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass
class PairTokeniser:
    """Texts to tokens for one language model.

    codec: how text becomes tokens. kind: "causal" or "seq2seq". name: of the model, in messages.
    context_length: how many tokens the model reads at most; None when there is no limit.
    pad_to_multiple: text lengths and the number of targets are padded to a multiple of it, as far
        as the context allows; padding does not count.
    """

    codec: TextCodec
    kind: str
    name: str
    context_length: int | None
    pad_to_multiple: int = 1

    def tokenise(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        n_prefix: int,
        max_txt_len: int | None = None,
        max_output_txt_len: int | None = None,
        skip: int | None = None,
    ) -> PairTokens:
        """Tokens of prompts and targets, cut to length, on the CPU.

        Args: as of ``nll``; n_prefix is the number of rows of the prefix, n.

        Raises:
            UserError: numbers of rows differ, or prefix and prompt do not fit the context.
        """
        if len(prompts) != len(targets):
            raise UserError(f"Got {len(prompts)} prompts for {len(targets)} targets.")
        if self.kind == "seq2seq":
            longest = max_output_txt_len if max_output_txt_len is not None else max_txt_len
            read = self._pad(self.prompts(prompts, n_prefix, max_txt_len), self._room(n_prefix))
            written = self._pad(self.answers(targets, longest), self._room(0))
            return self._pairs(read, written, [skip or 0] * len(targets))
        texts, first = [], []
        pairs = self.joined(prompts, targets, n_prefix, max_txt_len, max_output_txt_len)
        for before, after in pairs:
            texts.append(before + after)
            first.append(len(before) if skip is None else skip)
        joined = self._pad(texts, self._room(n_prefix))
        return self._pairs(joined, joined, first)

    # ---- one kind of text each

    def prompts(
        self, prompts: Sequence[str], n_prefix: int, longest: int | None = None
    ) -> list[list[int]]:
        """Ids of what is read before anything is written; a longer prompt is cut.

        Raises:
            UserError: one does not fit the context.
        """
        codec, texts = self.codec, []
        for prompt, ids in zip(prompts, codec.plain_all(prompts), strict=True):
            if self.kind == "seq2seq":
                text = _cut(codec.begin(prompt), ids, codec.trailing, longest)
                self.check_context(n_prefix + len(text) - 1)
            else:
                text = [*self._begin(prompt, n_prefix), *ids][:longest]
                self.check_context(n_prefix + len(text))
            texts.append(text)
        return texts

    def answers(self, targets: Sequence[str], longest: int | None = None) -> list[list[int]]:
        """Ids that the decoder of an encoder-decoder writes, end included."""
        codec, limits = self.codec, [x for x in (longest, self.context_length) if x is not None]
        most = min(limits, default=None)
        return [_cut(codec.leading, ids, [codec.end], most) for ids in codec.plain_all(targets)]

    def joined(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        n_prefix: int,
        longest: int | None = None,
        longest_target: int | None = None,
    ) -> list[tuple[list[int], list[int]]]:
        """For a causal model: ids of what precedes each target, and of the target, cut to length.

        Raises:
            UserError: prefix and prompt do not fit the context.
        """
        split = self.codec.split
        texts = [text for pair in zip(prompts, targets, strict=True) for text in split(*pair)]
        ids = self.codec.plain_all(texts)
        pairs = []
        for prompt, read, written in zip(texts[::2], ids[::2], ids[1::2], strict=True):
            before = [*self._begin(prompt, n_prefix), *read]
            after = [*written, self.codec.end][:longest_target]
            if longest is not None and longest_target is not None:
                before = before[:longest]
            elif longest is not None:
                before = before[: max(longest - 1, 0)]  # at least one token to learn from
                after = after[: longest - len(before)]
            self.check_context(n_prefix + len(before))
            if self.context_length is not None:
                after = after[: self.context_length - n_prefix - len(before)]
            pairs.append((before, after))
        return pairs

    def choices(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]], n_prefix: int
    ) -> tuple[list[list[int]], list[list[tuple[int, ...]]]]:
        """Ids of what is read, and of the answers to choose from after each prompt, end included.

        They are those of `tokenise`; a list of answers that comes again is the same object.

        Raises:
            UserError: prefix and prompt do not fit the context.
        """
        causal, codec = self.kind == "causal", self.codec
        texts = [tuple(entry) for entry in answers]
        if causal:
            pairs = zip(prompts, texts, strict=True)
            texts = [tuple(codec.split(prompt, a)[1] for a in entry) for prompt, entry in pairs]
            prompts = [prompt.rstrip(" ") for prompt in prompts]
        read = self.prompts(prompts, n_prefix)
        distinct = dict.fromkeys(texts)
        ids = iter(codec.plain_all([text for entry in distinct for text in entry]))
        begin = [] if causal else codec.leading
        known = {entry: [(*begin, *next(ids), codec.end) for _ in entry] for entry in distinct}
        rooms = [self._room(n_prefix + len(before) if causal else 0) for before in read]
        return read, [_no_longer(known[e], room) for e, room in zip(texts, rooms, strict=True)]

    def check_context(self, length: int, what: str = "prompt") -> None:
        """Raise a UserError when `length` tokens leave no room in the context."""
        if self.context_length is not None and length >= self.context_length:
            raise UserError(
                f"The {what} is too long for '{self.name}': with the image it is {length} tokens, "
                f"the model reads {self.context_length} in all. Shorten it, or set max_txt_len."
            )

    # ---- tensors

    def _begin(self, prompt: str, n_prefix: int) -> list[int]:
        """What precedes a prompt; without an image there must be something to go on from."""
        begin = self.codec.begin(prompt)
        return begin if begin or n_prefix or prompt else [self.codec.start]

    def _room(self, n_prefix: int) -> int | None:
        return None if self.context_length is None else self.context_length - n_prefix

    def _pad(self, texts: Sequence[Sequence[int]], most: int | None) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T]; T is a multiple as far as `most` allows."""
        width = _round_up(max(map(len, texts), default=0), self.pad_to_multiple)
        return pad_right(texts, self.codec.pad, width if most is None else min(width, most))

    def _pairs(
        self, read: tuple[Tensor, Tensor], written: tuple[Tensor, Tensor], first: Sequence[int]
    ) -> PairTokens:
        """All tokens of row b of `written` from position ``first[b]`` on are targets."""
        ids, mask = written
        wanted = mask & (torch.arange(ids.shape[1]) >= torch.tensor(first)[:, None])
        rows, positions = wanted.nonzero().unbind(1)
        targets = ids[wanted]
        more = _round_up(len(rows), self.pad_to_multiple) - len(rows)
        rows, positions, targets = (F.pad(x, (0, more)) for x in (rows, positions, targets))
        counts = torch.arange(len(rows)) < len(rows) - more
        return PairTokens(*read, ids, rows, positions, targets, counts)


def _cut(begin: list[int], ids: list[int], end: list[int], longest: int | None) -> list[int]:
    """All together, at most `longest` by leaving out the last of `ids`."""
    if longest is not None:
        ids = ids[: max(longest - len(begin) - len(end), 0)]
    return [*begin, *ids, *end]


def _no_longer(texts: list[tuple[int, ...]], most: int | None) -> list[tuple[int, ...]]:
    if most is None or max(map(len, texts), default=0) <= most:
        return texts
    return [text[:most] for text in texts]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
