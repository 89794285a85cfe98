"""From strings to token ids and back, by the rules of each tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lavislite.common.errors import ConfigError


class TextCodec:
    """A tokenizer's habits: what it puts around a text, how it joins words, what ends a text.

    leading, trailing: ids that the tokenizer puts before and after every text.
    end: id that ends a target. stop: ids that end a generated text, `end` among them.
    start: id that a text begins with when nothing else precedes it, or None.
    pad: id for padding, which no model looks at.

    Raises:
        ConfigError: nothing ends a text, or `end` is not one token.
    """

    def __init__(
        self,
        tokenizer: Any,
        end: str | None,
        name: str,
        *,
        begins_with: int | None = None,
        stop: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        bare, dressed = self.plain("a"), list(tokenizer("a")["input_ids"])
        at = _find(bare, dressed)
        self.leading, self.trailing = dressed[:at], dressed[at + len(bare) :]
        if begins_with is not None and not self.leading:
            self.leading = [begins_with]
        # Such tokenizers begin every text with a space of their own.
        self.adds_space = str(tokenizer.convert_ids_to_tokens(bare[:1])[0]).startswith("▁")
        eos = tokenizer.eos_token_id
        self.end = _end_id(self, end, name) if end is not None else eos
        if self.end is None:
            raise ConfigError(
                f"The tokenizer of '{name}' has no end token, so nothing would end a text. Set "
                "model.language.end to a text that is one token, such as a line break."
            )
        self.stop = list(dict.fromkeys(i for i in (self.end, eos, *stop) if i is not None))
        first = (tokenizer.bos_token_id, eos, self.end)
        self.start: int = next(i for i in first if i is not None)
        pad = tokenizer.pad_token_id
        self.pad: int = self.end if pad is None else pad

    def plain(self, text: str) -> list[int]:
        """The ids of the text and of nothing around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def plain_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`plain` of each text; the tokenizer is called once, and sees a repeated text once."""
        known: dict[str, list[int]] = {text: [] for text in texts}
        given = [text for text in known if text]
        if given:
            ids = self.tokenizer(given, add_special_tokens=False)["input_ids"]
            known.update(zip(given, ids, strict=True))
        return [known[text] for text in texts]

    def begin(self, prompt: str) -> list[int]:
        """The ids to put before `prompt`; none when it brings the begin token along."""
        bos = self.tokenizer.bos_token
        return [] if bos and prompt.startswith(bos) else self.leading

    def split(self, prompt: str, target: str) -> tuple[str, str]:
        """Prompt and target, with the space between them where the tokenizer expects it.

        Most tokenizers take a space as the beginning of the next word; tokens learned for a text in
        one piece are found again when the target is tokenized with it.
        """
        bare = prompt.rstrip(" ")
        if not bare:
            return "", target
        if self.adds_space:
            return bare, target.lstrip(" ")
        apart = bare == prompt and (prompt[-1].isspace() or target[:1].isspace())
        return bare, target if apart else f" {target.lstrip(' ')}"

    def decode(self, ids: Tensor) -> list[str]:
        """[N, n] -> N texts, each up to its first stop token, without special tokens, stripped."""
        texts = []
        for row in ids.tolist():
            length = next((i for i, token in enumerate(row) if token in self.stop), len(row))
            texts.append(self.tokenizer.decode(row[:length], skip_special_tokens=True).strip())
        return texts


def _end_id(codec: TextCodec, end: str, name: str) -> int:
    ids = codec.plain(end)
    if len(ids) > 1:  # some tokenizers put a space before every text: compare with a text around it
        before, joined = codec.plain("a"), codec.plain(f"a{end}")
        ids = joined[len(before) :] if joined[: len(before)] == before else ids
    if len(ids) != 1:
        raise ConfigError(
            f"model.language.end: {end!r} must be one token of '{name}', it is {len(ids)}. Choose "
            "another text, or null for the tokenizer's end token."
        )
    return ids[0]


def _find(part: list[int], whole: list[int]) -> int:
    for at in range(len(whole) - len(part) + 1):
        if whole[at : at + len(part)] == part:
            return at
    return 0
