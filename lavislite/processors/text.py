"""Text processors: what a caption or a question looks like when a model sees it."""

from __future__ import annotations

import re

from lavislite.common.catalog import processors

# BLIP's list: these carry no meaning in its training captions. Question marks, commas and
# apostrophes do, and stay.
_DROPPED = re.compile(r"[.!\"()*#:;~]")
_GAPS = re.compile(r"\s{2,}")


@processors.register("blip_caption")
class BlipCaption:
    """Lower case, BLIP's punctuation to spaces, at most `max_words` words, after `prompt`.

    Args:
        prompt: put in front as it is; end it with a space.
        max_words: further words are cut off.
    """

    def __init__(self, *, prompt: str = "", max_words: int = 50) -> None:
        self.prompt = prompt
        self.max_words = _positive(max_words)

    def __call__(self, caption: str) -> str:
        text = _GAPS.sub(" ", _DROPPED.sub(" ", caption.lower()))
        # Trailing newlines go before blanks do, so "a \n" keeps none of either but "a\n " would
        # keep its newline: BLIP's order.
        return self.prompt + _first_words(text.rstrip("\n").strip(" "), self.max_words)


@processors.register("blip_question")
class BlipQuestion:
    """Lower case, BLIP's punctuation removed, at most `max_words` words."""

    def __init__(self, *, max_words: int = 50) -> None:
        self.max_words = _positive(max_words)

    def __call__(self, question: str) -> str:
        return _first_words(_DROPPED.sub("", question.lower()).rstrip(" "), self.max_words)


def _first_words(text: str, n: int) -> str:
    return " ".join(text.split(" ")[:n])


def _positive(max_words: int) -> int:
    if not isinstance(max_words, int) or max_words < 1:
        raise ValueError(f"max_words: expected a positive whole number, saw {max_words!r}")
    return max_words
