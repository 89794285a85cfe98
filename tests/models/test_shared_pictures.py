"""A picture that several samples show, and what is known of it already, is not looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.errors import UserError
from lavislite.models.blip2.samples import pictures
from lavislite.models.blip2.stage2 import Blip2LLM

from .reference_stage2 import KINDS, reference_stage2, stage2_tensors

IMAGE = stage2_tensors("opt", "generate_tensors")["image"]
SHOWN = torch.tensor([2, 0, 2, 2, 1])
QUESTIONS = ["what is it", "is it red", "how many are there", "is it a dog", "who"]
SHORT = {"num_beams": 2, "max_new_tokens": 4}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Blip2LLM:
    return reference_stage2(request.param, tmp_path).eval()


def passes(model: Blip2LLM) -> list[int]:
    """Receives how many pictures each pass of the tower sees."""
    seen: list[int] = []
    model.visual_encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    return seen


def test_writing_looks_at_each_picture_once(model: Blip2LLM) -> None:
    seen = passes(model)
    shared = {"image": IMAGE[:3], "image_index": SHOWN, "prompt": QUESTIONS}
    written = model.generate(shared, **SHORT)
    assert seen == [3]
    assert written == model.generate({"image": IMAGE[SHOWN], "prompt": QUESTIONS}, **SHORT)


@torch.no_grad()
def test_the_loss_is_that_of_copies(model: Blip2LLM) -> None:
    texts = {"text_input": QUESTIONS, "text_output": ["yes", "no", "two dogs", "a", "me"]}
    shared = model({**texts, "image": IMAGE[:3], "image_index": SHOWN})["loss"]
    torch.testing.assert_close(shared, model({**texts, "image": IMAGE[SHOWN]})["loss"])


@torch.no_grad()
def test_known_features_take_the_place_of_pictures(model: Blip2LLM) -> None:
    features, seen = model.tower_features(IMAGE[:3]), passes(model)
    known = {"image_features": features, "image_index": SHOWN, "prompt": QUESTIONS}
    written = model.generate(known, **SHORT)
    assert seen == []
    assert written == model.generate({"image": IMAGE[SHOWN], "prompt": QUESTIONS}, **SHORT)


def test_samples_with_several_pictures_can_share_them() -> None:
    even = pictures(
        {"image": IMAGE.unflatten(0, (2, 2)), "image_index": [1, 1, 0]}, check_values=True
    )
    assert even.counts == [2, 2, 2]
    assert even.shows is not None
    assert even.shows.tolist() == [2, 3, 2, 3, 0, 1]
    uneven = pictures(
        {"image": [IMAGE[:1], IMAGE[1:4]], "image_index": torch.tensor([1, 0])}, check_values=True
    )
    assert uneven.counts == [3, 1]
    assert uneven.shows is not None
    assert uneven.shows.tolist() == [1, 2, 3, 0]
    one = pictures(
        {"image": IMAGE[:1].expand(3, -1, -1, -1), "image_index": [0, 2]}, check_values=True
    )
    assert one.shows is not None
    assert one.shows.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("index", "said"),
    [([0, 4], "expected 0 to 3, got"), ([[0]], "whole numbers"), ([0.5], "whole numbers")],
)
def test_an_index_that_cannot_be(index: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=f"image_index: .*{said}"):
        pictures({"image": IMAGE, "image_index": index}, check_values=True)


def test_features_of_another_tower(model: Blip2LLM) -> None:
    with pytest.raises(UserError, match=r"image_features: expected \[B, tokens, 64\], got"):
        model.generate({"image_features": torch.zeros(1, 5, 7)})


def test_tokens_made_in_advance_give_the_same_loss(model: Blip2LLM) -> None:
    prepare = model.text_preparer()
    assert prepare is not None
    samples = {"image": IMAGE, "text_input": ["what is it"] * 4, "text_output": ["red"] * 4}
    ready = {"image": IMAGE, "text_tokens": prepare(samples)["text_tokens"], "text_input": []}
    with torch.no_grad():
        torch.testing.assert_close(model(ready)["loss"], model(samples)["loss"])
