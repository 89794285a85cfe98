"""How to write text: the options of every `generate`, whichever model writes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from lavislite.common.errors import ConfigError
from lavislite.common.schema import Bounds, check_bounds

BOUNDS: Bounds = {
    "max_new_tokens": (1, None),
    "min_new_tokens": (0, None),
    "num_beams": (1, None),
    "top_p": (0, 1),
    "no_repeat_ngram_size": (0, None),
    "num_captions": (1, None),
}


@dataclass
class GenerationOptions:
    """How to write text after a prompt.

    max_new_tokens, min_new_tokens: of the new text alone; the end token counts as one.
    use_nucleus_sampling: draw from the likeliest tokens whose probabilities reach `top_p`, at
        `temperature`; otherwise beam search (one beam is greedy).
    length_penalty: a beam scores sum(log p) / length ** length_penalty.
    num_captions: texts per row: the best beams, or so many samples.
    lavis_lengths: a start token precedes the text, is never read by a causal model, and counts in
        `min_new_tokens`, in the length penalty and as a token already seen; the end does not count
        in the length penalty. So transformers 4.33 counted for LAVIS. `max_new_tokens` never counts
        it: LAVIS's ``blip2_opt.generate(max_length=n)`` writes n - 1 tokens, everything else n.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 1
    num_beams: int = 5
    use_nucleus_sampling: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_captions: int = 1
    lavis_lengths: bool = False

    def check(self, key: str = "generation") -> None:
        """Raise ConfigError naming the first option, under `key`, that cannot be."""
        for field in fields(self):
            require_kind(f"{key}.{field.name}", getattr(self, field.name), str(field.type))
        check_bounds(key, self, BOUNDS)
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{key}.{name}: expected more than 0, saw {value}")
        longest = self.max_new_tokens + self.lavis_lengths
        if self.min_new_tokens > longest:
            raise ConfigError(
                f"{key}.min_new_tokens: expected at most {longest} (max_new_tokens is "
                f"{self.max_new_tokens}), saw {self.min_new_tokens}"
            )
        if not self.use_nucleus_sampling and self.num_captions > self.num_beams:
            raise ConfigError(
                f"{key}.num_captions: {self.num_captions} captions need as many beams, num_beams "
                f"is {self.num_beams}. Raise num_beams, or set use_nucleus_sampling."
            )


_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}


def require_kind(key: str, value: Any, kind: str) -> None:
    """Raise ConfigError when `value` is not of the `kind` int, float or bool."""
    wanted, words = _KINDS[kind]
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {words}, saw {value!r} ({type(value).__name__})")


def require_count(key: str, value: Any, least: int = 1) -> None:
    """Raise ConfigError when `value` is no whole number of at least `least`."""
    require_kind(key, value, "int")
    if value < least:
        raise ConfigError(f"{key}: expected {least} or more, saw {value}")
