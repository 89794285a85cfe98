"""Captions to the tokens that the COCO caption metrics count, without Java.

The metrics are defined over the output of Stanford's `PTBTokenizer -preserveLines -lowerCase`
(CoreNLP 3.4.1) with punctuation tokens dropped. This module finds the same tokens. As there, every
rule is tried at a position and the longest match wins (what a rule must see behind a token counts
too); among equals the first rule does. Odd results are the original's: "the dog.," keeps the full
stop, "£5" becomes "# 5", emoji vanish, brackets become `-lrb-` and `-rrb-`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lavislite.metrics.ptb_rules import RULES

# COCO's list also has the brackets in capitals, which lower-case tokens never equal.
DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# What a tokenizer that works line by line would take for the end of the caption.
_LINE_BREAKS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
# A plain word before a space or a comma is most of English: no rule finds anything longer there.
_PLAIN = re.compile(r"(?!(?ai:cannot|gonna|wanna|lemme|gimme|gotta)\b)[A-Za-z]+(?=,?[ \n])")


def tokenize(captions: Sequence[str]) -> list[str]:
    """Lower-case tokens of each caption, joined by one space; "" when only punctuation is left.

    A line break within a caption counts as a space. As in the original, the captions are one text:
    "plan b." ends in the token `b` when the next caption starts a sentence ("A dog ..."), and in
    `b.` when it does not. A few tokens hold a no-break space ("1 1/2").

    Args:
        captions: any text; what the original cannot read (emoji, lone surrogates) is dropped.

    Returns:
        As many strings as captions, in the same order.
    """
    text = "".join(_LINE_BREAKS.sub(" ", caption) + "\n" for caption in captions)
    lines: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        plain = _PLAIN.match(text, position)
        if plain:
            lines[-1].append(plain[0].lower())
            position = plain.end()
        elif text[position] == "\n":
            lines.append([])
            position += 1
        else:
            position, token = _next_token(text, position)
            if token and token not in DROPPED:
                lines[-1].append(token)
    return [" ".join(tokens) for tokens in lines[:-1]]  # the last line break opened one too many


def _next_token(text: str, position: int) -> tuple[int, str]:
    """Where the text goes on, and the token before: "" for a space or an unreadable character."""
    best, longest = None, position
    for rule in RULES:
        match = rule.pattern.match(text, position)
        if match and match.end() > longest:
            best, longest, write = match, match.end(), rule.write
    if best is None:
        return position + 1, ""
    token = best[1] if write is None else write(best[1])
    return best.end(1), token.lower()
