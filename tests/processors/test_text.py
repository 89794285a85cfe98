"""Text processors write what LAVIS's write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavislite.processors import build_processor

ROWS = json.loads((Path(__file__).parents[1] / "data/processors/text.json").read_text())["rows"]
CASES = {
    "caption": {"name": "blip_caption"},
    "caption_prompt": {"name": "blip_caption", "prompt": "a photo of "},
    "caption_max5": {"name": "blip_caption", "max_words": 5},
    "question": {"name": "blip_question"},
    "question_max5": {"name": "blip_question", "max_words": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_same_strings_as_the_original(case: str) -> None:
    process = build_processor(CASES[case])
    wrong = [
        (row["input"], process(row["input"])) for row in ROWS if process(row["input"]) != row[case]
    ]
    assert len(ROWS) == 34
    assert not wrong
