"""Captions to token ids: which vocabulary, and packing a batch.

Importing transformers takes seconds, so it happens inside the functions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.common.distributed import is_main
from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text
from lavislite.common.logging import get_logger, warn_once
from lavislite.models.blip2.hub import BERT, find_bert

logger = get_logger(__name__)

MAX_TRAINED_VOCABULARY = 30_522
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BEGIN = "[DEC]"  # first token of a text to be generated, as in the original


# ---- a batch of texts


@dataclass
class TextBatch:
    """Texts as ids [B, L], right padded, and what the language loss needs of them.

    lm_rows: [n] positions in the flattened [B * L] that have a next token.
    lm_targets: [n] that token.
    """

    ids: Tensor
    mask: Tensor
    lm_rows: Tensor
    lm_targets: Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        parts = (self.ids, self.mask, self.lm_rows, self.lm_targets)
        return TextBatch(*(part.to(device, non_blocking=True) for part in parts))


class TextPacker:
    """Tokenizes and truncates texts, pads them to the longest, and watches how many it truncates.

    Everything happens on the CPU, so that the device is never asked for a count.

    Args:
        max_length: in tokens, ``[CLS]`` and ``[SEP]`` among them.
        what, key: the texts, and the option that `max_length` comes from, in the warning.
    """

    WARN_AFTER = 100
    WARN_FRACTION = 0.05

    def __init__(
        self, tokenizer: Any, max_length: int, what: str = "captions", key: str = "max_txt_len"
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.what, self.key = what, key
        self.seen = 0
        self.truncated = 0

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None) -> TextBatch:
        """`max_length` counts ``[CLS]`` and ``[SEP]``; None is the packer's own.

        Raises:
            UserError: there is no text.
        """
        limit = max_length or self.max_length
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("No texts: expected one string or a list of at least one.")
        rows: list[list[int]] = self.tokenizer(texts, verbose=False)["input_ids"]
        end = self.tokenizer.sep_token_id
        if max_length is None:
            self._watch(sum(len(row) > limit for row in rows), len(rows))
        rows = [row if len(row) <= limit else [*row[: limit - 1], end] for row in rows]
        return pack(rows, self.tokenizer.pad_token_id)

    def _watch(self, truncated: int, count: int) -> None:
        self.truncated += truncated
        self.seen += count
        share = self.truncated / max(self.seen, 1)
        if self.seen >= self.WARN_AFTER and share > self.WARN_FRACTION:
            warn_once(
                logger,
                ("truncated texts", id(self)),
                f"{share:.0%} of the {self.what} so far are longer than model.{self.key} "
                f"{self.max_length} and were cut; a larger value keeps them whole.",
            )


def pack(rows: Sequence[Sequence[int]], pad: int) -> TextBatch:
    """Token ids of different lengths -> a batch padded to the longest."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], dtype=torch.long)
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=pad).flatten()
    lm_rows = (following != pad).nonzero().flatten()
    return TextBatch(ids, (ids != pad).long(), lm_rows, following[lm_rows])


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
    for caption, times in Counter(captions).items():
        for word, _ in split(normalise(caption)):
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
