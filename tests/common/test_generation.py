"""Options of generation are checked by name."""

from __future__ import annotations

from typing import Any

import pytest

from lavislite.common.errors import ConfigError
from lavislite.common.generation import GenerationOptions


def test_the_defaults_are_fine() -> None:
    GenerationOptions().check()
    GenerationOptions(max_new_tokens=10, min_new_tokens=11, lavis_lengths=True).check()
    GenerationOptions(num_captions=9, use_nucleus_sampling=True).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "run.generation.max_new_tokens: expected 1 or more, saw 0"),
        ({"min_new_tokens": -1}, "run.generation.min_new_tokens: expected 0 or more"),
        ({"max_new_tokens": 5, "min_new_tokens": 8}, "min_new_tokens: expected at most 5"),
        ({"num_beams": 0}, "num_beams: expected 1 or more"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1, saw 1.5"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty: expected more than 0"),
        ({"num_captions": 6}, "6 captions need as many beams, num_beams is 5"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**options).check("run.generation")
