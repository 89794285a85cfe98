"""Nouns and verbs lose their endings; nothing else changes."""

from __future__ import annotations

import sys

import pytest

from lavislite.metrics import lemmas
from lavislite.metrics.lemmas import lemmatize
from lavislite.metrics.vqa import vqa_accuracy


@pytest.mark.parametrize(
    ("text", "lemma"),
    [
        ("surfboards", "surfboard"),
        ("women", "woman"),
        ("skiing", "ski"),
        ("ran", "run"),
        ("Dogs running", "dog run"),
        ("two t-shirts, please!", "two t-shirt, please!"),
        ("mother's day", "mother's day"),
    ],
)
def test_forms_of_nouns_and_verbs(text: str, lemma: str) -> None:
    assert lemmatize(text) == lemma


@pytest.mark.parametrize(
    "text",
    ["", "  ", "older", "biggest", "it is theirs", "Christmas", "NBA", "3", "dog's", "ünïcödé"],
)
def test_what_stays_as_it_is(text: str) -> None:
    assert lemmatize(text) == text


def test_it_is_applied_to_the_prediction() -> None:
    answers = ["surfboard"] * 10
    assert vqa_accuracy("surfboards", answers) == 0
    assert vqa_accuracy(lemmatize("surfboards"), answers) == 1


def test_without_the_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lemmas._lemmatizer.cache_clear()
    monkeypatch.setitem(sys.modules, "simplemma", None)
    with pytest.raises(ImportError, match=r"pip install simplemma"):
        lemmatize("dogs")
