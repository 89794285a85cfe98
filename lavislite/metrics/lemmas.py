"""Lemmas of an answer's words: "surfboards" -> "surfboard", "skiing" -> "ski".

BLIP-2 reports OK-VQA on lemmatised predictions; the annotators' answers stay as they are. That
helps a model that answers in other inflections than the annotators do, and harms one that has
learned theirs.

LAVIS does it with spaCy's tagger and English model: a word takes its lemma if it is tagged as a
noun or a verb in this place (not a name, not an auxiliary), all tokens are joined by spaces
("t-shirt" -> "t - shirt"). Here a dictionary does it (simplemma), which sees no context: "glasses"
becomes "glass" and "leaves" "leave" wherever they stand. What it would do to comparatives ("older"
-> "old"), auxiliaries and pronouns is left undone, and everything between the words stays. So the
figures are close to LAVIS's, not the same; quote the figure without lemmas beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_COMPARED = ("er", "est")  # endings that no form of a noun or verb has
# Words that the dictionary would change although they are neither noun nor verb.
_OTHERS = """
    am are is was were be been being has have had do does did can could may might must shall should
    will would i me my mine we us our ours you your yours he him his she her hers it its they them
    their theirs this that these those a an worse worst more most less least
"""
_KEPT = frozenset(_OTHERS.split())


def lemmatize(text: str) -> str:
    """`text` with each noun and verb in its basic form; everything else stays as it is.

    Raises:
        ImportError: simplemma is not installed; the message says how to get it.
    """
    lemma = _lemmatizer()
    return _WORD.sub(lambda found: _lemma(found[0], lemma), text)


def _lemma(word: str, lemma: Callable[[str], str]) -> str:
    plain = word.lower()
    if not plain.isalpha() or plain in _KEPT or plain.endswith(_COMPARED):
        return word
    found = lemma(plain)
    # An abbreviation ("NBA") has no forms, and a capital ("Christmas") is not one.
    return word if found.lower() == plain or (word.isupper() and len(word) > 1) else found


@lru_cache(maxsize=1)
def _lemmatizer() -> Callable[[str], str]:
    try:
        import simplemma
    except ImportError as error:
        raise ImportError("Lemmas need the package simplemma: pip install simplemma") from error
    return lru_cache(maxsize=1 << 16)(lambda word: simplemma.lemmatize(word, lang="en"))
