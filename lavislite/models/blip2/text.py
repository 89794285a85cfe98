"""Captions to token ids: which vocabulary, and packing a batch.

Importing transformers takes seconds, so it happens inside the functions.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavislite.common.distributed import is_main
from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger
from lavislite.models.blip2.hub import BERT, find_bert
from lavislite.models.blip2.losses import NO_TARGET

logger = get_logger(__name__)

MAX_TRAINED_VOCABULARY = 30_522
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BEGIN = "[DEC]"  # first token of a text to be generated, as in the original


# ---- a batch of texts


@dataclass
class TextBatch:
    """Texts as ids [B, L], right padded, and what the language loss needs of them.

    lm_rows: [n] positions in the flattened [B * L] that have a next token.
    lm_targets: [n] that token; `NO_TARGET` where a row is there for the number's sake.
    """

    ids: Tensor
    mask: Tensor
    lm_rows: Tensor
    lm_targets: Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        return TextBatch(*(part.to(device, non_blocking=True) for part in self._parts()))

    def pin_memory(self) -> TextBatch:
        """A copy from which a GPU can fetch while the host goes on."""
        return TextBatch(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.ids, self.mask, self.lm_rows, self.lm_targets


class TextPacker:
    """Tokenizes and truncates texts, pads them to the longest, and watches how many it truncates.

    Everything happens on the CPU, so that the device is never asked for a count.

    Args:
        max_length: in tokens, ``[CLS]`` and ``[SEP]`` among them.
        what, key: the texts, and the option that `max_length` comes from, in the warning.
        multiple: see `pack`; texts are never padded beyond `max_length`.
    """

    WARN_AFTER = 100
    WARN_FRACTION = 0.05

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        what: str = "captions",
        key: str = "max_txt_len",
        multiple: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.what, self.key = what, key
        self.multiple = multiple
        # Seen, truncated, warned: shared with the workers that load, so that one speaks for all.
        self._counts = torch.zeros(3, dtype=torch.long, device="cpu").share_memory_()

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None) -> TextBatch:
        """`max_length` counts ``[CLS]`` and ``[SEP]``; None is the packer's own.

        Raises:
            UserError: there is no text.
        """
        limit = max_length or self.max_length
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("No texts: expected one string or a list of at least one.")
        rows: list[list[int]] = self.tokenizer(
            texts, verbose=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        end = self.tokenizer.sep_token_id
        if max_length is None:
            self._watch(sum(len(row) > limit for row in rows), len(rows))
        rows = [row if len(row) <= limit else [*row[: limit - 1], end] for row in rows]
        return pack(rows, self.tokenizer.pad_token_id, self.multiple, limit)

    def _watch(self, truncated: int, count: int) -> None:
        self._counts += torch.tensor([count, truncated, 0])
        seen, cut, warned = self._counts.tolist()
        worker = torch.utils.data.get_worker_info()
        if warned or seen < self.WARN_AFTER or cut <= self.WARN_FRACTION * seen:
            return
        if worker is None or worker.id == 0:
            self._counts[2] = 1
            logger.warning(
                f"{cut / seen:.0%} of the {self.what} so far are longer than model.{self.key} "
                f"{self.max_length} and were cut; a larger value keeps them whole."
            )


class TextPreparer:
    """Adds ``text_tokens`` to a batch with ``text_input``, in the process that loads it."""

    def __init__(self, pack: TextPacker) -> None:
        self.pack = pack

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "text_input" not in batch:
            return batch
        return {**batch, "text_tokens": self.pack(batch["text_input"])}


def pack(
    rows: Sequence[Sequence[int]], pad: int, multiple: int = 1, longest: int | None = None
) -> TextBatch:
    """Token ids of different lengths -> a batch padded to the longest.

    Args:
        multiple: with 2 and more, the length is a multiple of it, but no more than `longest`; and
            the number of `lm_rows`, which grows with the batch, one of ``B * multiple / 4``. So
            batches come in few shapes. Rows that fill up are row 0 without a target.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    width = min(_up(int(lengths.max()), multiple), longest or sys.maxsize)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    ids[np.arange(width) < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), np.int64)
    following = np.full_like(ids, pad)
    following[:, :-1] = ids[:, 1:]
    lm_rows = np.flatnonzero(following != pad)
    lm_targets = following.ravel()[lm_rows]
    if multiple > 1:
        spare = _up(len(lm_rows), multiple * -(-len(rows) // 4)) - len(lm_rows)
        lm_rows = np.pad(lm_rows, (0, spare))
        lm_targets = np.pad(lm_targets, (0, spare), constant_values=NO_TARGET)
    parts = ids, (ids != pad).astype(np.int64), lm_rows, lm_targets
    return TextBatch(*map(torch.from_numpy, parts))


def _up(number: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-number // multiple) * multiple


# ---- which vocabulary


def build_tokenizer(
    spec: str, captions: Iterable[str] | None = None, save_dir: str | Path | None = None
) -> Any:
    """A BERT tokenizer of transformers, with ``[DEC]`` as its bos token.

    Args:
        spec: a folder (``vocab.txt`` is enough), "bert-base-uncased", "from_data" (a vocabulary
            made of `captions`), or "auto": bert-base-uncased when it can be had, else from_data.
        captions: read only when a vocabulary has to be made of them.
        save_dir: folder that receives the vocabulary, so that it stays with the checkpoints.

    Raises:
        UserError: the folder holds no vocabulary, bert-base-uncased cannot be had, or there is
            nothing to make a vocabulary of.
    """
    tokenizer = _find_tokenizer(spec, captions)
    tokenizer.add_special_tokens({"bos_token": BEGIN})
    if save_dir is not None:
        save_tokenizer(tokenizer, save_dir)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write ``vocab.txt`` into `folder` (main process only); `build_tokenizer` reads the folder."""
    if not is_main():
        return
    # [DEC] is added on loading, behind the last entry, as the original does.
    by_id = {i: token for token, i in tokenizer.get_vocab().items() if token != BEGIN}
    # An id without token (the vocabulary listed one twice) gets the last token: of a token listed
    # twice, the later line counts.
    last = max(by_id)
    lines = [by_id[i] if i in by_id else by_id[last] for i in range(last + 1)]
    atomic_write_text(Path(folder) / "vocab.txt", "".join(line + "\n" for line in lines))


def tokenizer_identity(tokenizer: Any) -> str:
    """``wordpiece-<size>@<hash>``: equal when all ids mean the same."""
    vocabulary = tokenizer.get_vocab()
    text = "\n".join(f"{i} {token}" for i, token in sorted((i, t) for t, i in vocabulary.items()))
    return f"wordpiece-{len(vocabulary)}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _find_tokenizer(spec: str, captions: Iterable[str] | None) -> Any:
    if spec == "from_data":
        return _train(captions)
    if spec not in ("auto", BERT):
        return _from_folder(Path(spec).expanduser())
    try:
        return _from_folder(find_bert("vocab.txt").parent)
    except UserError as error:
        if spec == BERT or captions is None:
            raise
        logger.info("tokenizer: %s Making a vocabulary from the captions instead.", error)
        return _train(captions)


def _from_folder(folder: Path) -> Any:
    if not (folder / "vocab.txt").exists():
        raise UserError(
            f"model.tokenizer: expected 'auto', 'from_data', '{BERT}' or a folder with vocab.txt; "
            f"there is no {folder / 'vocab.txt'}."
        )
    from transformers import BertTokenizer

    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    lacking = [token for token in SPECIAL_TOKENS[:4] if token not in vocabulary]
    if lacking:
        raise UserError(f"{folder / 'vocab.txt'}: not a BERT vocabulary, it lacks {lacking[0]}.")
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)})


def _train(captions: Iterable[str] | None) -> Any:
    """A vocabulary of the captions' words; the same captions give the same vocabulary.

    Every character, alone and inside a word, then words by frequency. (The trainers of `tokenizers`
    break ties by chance.) A word that occurs once is spelled, so that spelling is learnt too.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import BertTokenizer

    if captions is None:
        raise UserError("model.tokenizer: 'from_data' needs a training dataset with captions.")
    normalise = normalizers.BertNormalizer(lowercase=True).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts: Counter[str] = Counter()
    # Nothing that normalising and splitting do reaches beyond a blank.
    for part, times in Counter(chain.from_iterable(c.split(" ") for c in captions)).items():
        for word, _ in split(normalise(part)):
            counts[word] += times
    if not counts:
        raise UserError(
            "model.tokenizer: there are no training captions to make a vocabulary of. A run keeps "
            "its own: set model.tokenizer=<run folder>/tokenizer."
        )
    letters = sorted({letter for word in counts for letter in word})
    frequent = sorted((word for word in counts if counts[word] > 1), key=lambda w: (-counts[w], w))
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *frequent]
    tokens = list(dict.fromkeys(pieces))[:MAX_TRAINED_VOCABULARY]
    logger.info("tokenizer: made a vocabulary of %d entries from the captions", len(tokens))
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
