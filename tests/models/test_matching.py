"""Scores of image-text pairs equal the original's."""

from __future__ import annotations

import pytest
import torch

from lavislite.common.errors import UserError
from lavislite.models.blip2.matching import Blip2ITM
from lavislite.models.blip2.stage1 import Blip2Qformer

from .reference import reference_batch, reference_model, stage1_json, tensors


@pytest.fixture(scope="module")
def model() -> Blip2Qformer:
    return reference_model(Blip2ITM).eval()


def test_pairs_of_the_original(model: Blip2Qformer) -> None:
    expected, batch = tensors("itm_model"), reference_batch("eva_frozen")
    for j, text in enumerate(batch["text_input"]):
        for name, image in (("pair", j), ("cross", (j + 1) % 4)):
            samples = {"image": batch["image"][image : image + 1], "text_input": [text]}
            itm, itc = expected[f"{name}{j}.itm_logits"], expected[f"{name}{j}.itc"]
            torch.testing.assert_close(model(samples), itm, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(model(samples, match_head="itc"), itc, atol=2e-5, rtol=1e-4)


def test_a_batch_of_the_original(model: Blip2Qformer) -> None:
    expected, image = tensors("itm_model"), reference_batch("eva_frozen")["image"]
    samples = {"image": image[:2], "text_input": stage1_json()["itm_batch_texts"]}
    torch.testing.assert_close(model(samples), expected["batch.itm_logits"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(samples, "itc"), expected["batch.itc"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["itm", "itc"])
def test_texts_of_different_length_score_as_alone(model: Blip2Qformer, head: str) -> None:
    batch = reference_batch("eva_frozen")
    together = model(batch, match_head=head)
    for j, text in enumerate(batch["text_input"]):
        alone = model({"image": batch["image"][j : j + 1], "text_input": text}, match_head=head)
        torch.testing.assert_close(together[j : j + 1], alone, atol=2e-5, rtol=1e-4)


def test_mistakes_are_explained(model: Blip2Qformer) -> None:
    with pytest.raises(UserError, match="expected 'itm' or 'itc', got 'itx'"):
        model(reference_batch("eva_frozen"), match_head="itx")
    with pytest.raises(UserError, match="needs samples\\['text_input'\\]"):
        model({"image": torch.zeros(1, 3, 56, 56)})
