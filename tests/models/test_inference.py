"""Features, retrieval scores, captions and attention maps of a stage-1 model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from lavislite.common.errors import UserError
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.models.decoding import Decoding, beam_search, sample, top

from .reference import reference_batch, reference_model, stage1_json, tensors

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Blip2Qformer:
    return reference_model().eval()


@pytest.mark.parametrize("mode", ["multimodal", "image", "text"])
def test_features_of_the_original(model: Blip2Qformer, mode: str) -> None:
    features = model.extract_features(reference_batch("eva_frozen"), mode=mode)
    expected = {k: v for k, v in tensors("extract").items() if k.startswith(mode + ".")}
    assert expected
    filled = {f"{mode}.{k}" for k, v in vars(features).items() if v is not None}
    assert filled == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(getattr(features, name.split(".")[1]), tensor, **CLOSE)


def test_the_parts_of_the_original(model: Blip2Qformer) -> None:
    expected, batch = tensors("extract"), reference_batch("eva_frozen")
    queries, image = model.forward_image(batch["image"])
    torch.testing.assert_close(queries, expected["forward_image.query_last_hidden"], **CLOSE)
    torch.testing.assert_close(image, expected["forward_image.image_embeds"], **CLOSE)
    ids, mask = expected["compute_itm.text_ids"], expected["compute_itm.text_atts"]
    cls = model.forward_text(SimpleNamespace(input_ids=ids, attention_mask=mask))
    torch.testing.assert_close(cls, expected["forward_text.cls"], **CLOSE)
    scores = model.compute_itm(image, ids, mask)
    torch.testing.assert_close(scores, expected["compute_itm.scores_diag"], **CLOSE)


def test_retrieval_scores_equal_pair_scores(model: Blip2Qformer) -> None:
    batch = reference_batch("eva_frozen")
    embedded = model.embed_image(batch["image"])
    expected = tensors("eva_frozen_tensors")
    torch.testing.assert_close(embedded.image_feats, expected["image_feats"], **CLOSE)
    torch.testing.assert_close(
        model.embed_text(batch["text_input"]), expected["text_feat"], **CLOSE
    )
    memory = model.image_memory(embedded.image_embeds)
    scores = model.score_itm(memory, torch.tensor([0, 1, 2, 3]), batch["text_input"])
    itm = [tensors("itm_model")[f"pair{j}.itm_logits"][0, 1] for j in range(4)]
    torch.testing.assert_close(scores, torch.stack(itm), **CLOSE)


def test_unknown_mode_and_missing_input(model: Blip2Qformer) -> None:
    with pytest.raises(UserError, match="Did you mean 'image'"):
        model.extract_features({}, mode="imag")
    with pytest.raises(UserError, match="mode 'text' needs samples"):
        model.extract_features({"image": torch.zeros(1)}, mode="text")


def test_shapes_that_do_not_fit_are_named(model: Blip2Qformer) -> None:
    image = reference_batch("eva_frozen")["image"]
    with pytest.raises(UserError, match=r"expected \[B, 3, H, W\], got .*unsqueeze"):
        model.extract_features({"image": image[0]}, mode="image")
    with pytest.raises(UserError, match="one text per image, got 2 for 4"):
        model.extract_features({"image": image, "text_input": ["a", "b"]})
    with pytest.raises(UserError, match="No texts"):
        model.extract_features({"text_input": []}, mode="text")


def test_attention_of_the_queries(model: Blip2Qformer) -> None:
    batch = reference_batch("eva_frozen")
    with_text, alone = (
        model.cross_attention(batch),
        model.cross_attention({"image": batch["image"]}),
    )
    assert with_text.shape == alone.shape == (4, 2, 4, 8, 17)
    torch.testing.assert_close(with_text.sum(-1), torch.ones(4, 2, 4, 8))
    assert not torch.allclose(with_text[:, 1], alone[:, 1])


# ---- captions

GENERATED = stage1_json()["generate"]


@pytest.mark.parametrize("call", GENERATED)
def test_captions_of_the_original(model: Blip2Qformer, call: str) -> None:
    image = reference_batch("eva_frozen")["image"]
    assert model.generate({"image": image}, **json.loads(call)) == GENERATED[call]["captions"]
    how = Decoding(begin=254, end=3, pad=0, **json.loads(call))
    assert model.generate_ids(image, how).tolist() == GENERATED[call]["ids"]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_generates_what_each_image_generates_alone(model: Blip2Qformer, beams: int) -> None:
    image = reference_batch("eva_frozen")["image"][:3]
    together = model.generate({"image": image}, num_beams=beams, max_length=10, min_length=3)
    alone = [
        model.generate({"image": one[None]}, num_beams=beams, max_length=10, min_length=3)[0]
        for one in image
    ]
    assert together == alone


def test_nucleus_sampling_follows_the_seed(model: Blip2Qformer) -> None:
    samples = {"image": reference_batch("eva_frozen")["image"]}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(samples, use_nucleus_sampling=True, max_length=8))
    assert texts[0] == texts[1] != texts[2]
    greedy = model.generate(samples, num_beams=1, max_length=8)
    assert model.generate(samples, use_nucleus_sampling=True, top_p=0.0, max_length=8) == greedy


def test_a_repetition_penalty_is_applied(model: Blip2Qformer) -> None:
    image = reference_batch("eva_frozen")["image"]
    settings = {"begin": 254, "end": 3, "pad": 0, "max_length": 12, "min_length": 12}
    free = model.generate_ids(image, Decoding(**settings, num_beams=1))
    never = model.generate_ids(image, Decoding(**settings, num_beams=1, repetition_penalty=1e4))
    assert len(set(free[0].tolist())) < 12
    assert len(set(never[0].tolist())) == 12


def test_impossible_lengths_are_refused(model: Blip2Qformer) -> None:
    with pytest.raises(UserError, match="max_length from 1 to 64"):
        model.generate({"image": torch.zeros(1, 3, 56, 56)}, max_length=100)


# ---- decoding alone, on a table of probabilities

BEGIN, END, PAD, A, B = range(5)


def chain(tokens: torch.Tensor, _parents: torch.Tensor | None) -> torch.Tensor:
    """After BEGIN: A .6, B .4; after A: anything alike; after B: END for sure."""
    table = torch.full((5, 5), 1e-9)
    table[BEGIN, A], table[BEGIN, B] = 0.6, 0.4
    table[A, A], table[A, B], table[A, END] = 0.34, 0.33, 0.33
    table[B, END] = 1.0
    return table.log()[tokens[:, -1]]


def how(**changes: float) -> Decoding:
    settings: dict = {"max_length": 4, "min_length": 1, "num_beams": 2, **changes}
    return Decoding(begin=BEGIN, end=END, pad=PAD, **settings)


def test_beams_find_what_greedy_misses() -> None:
    device = torch.device("cpu")
    greedy = beam_search(chain, 1, how(num_beams=1), device)
    assert greedy.tolist() == [[BEGIN, A, A, A]]
    beams = beam_search(chain, 1, how(length_penalty=0.0), device)
    assert beams.tolist() == [[BEGIN, B, END, PAD]]


def test_nucleus_leaves_out_the_unlikely() -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    firsts = {sample(chain, 1, how(top_p=0.5), device)[0, 1].item() for _ in range(20)}
    assert firsts == {A}
    firsts = {sample(chain, 1, how(top_p=0.99), device)[0, 1].item() for _ in range(40)}
    assert firsts == {A, B}


@pytest.mark.parametrize("words", [5, 300, 1001])
def test_the_largest_of_long_rows(words: int) -> None:
    x = torch.randn(2, 3, words, generator=torch.Generator().manual_seed(words))
    for count in (1, 4):
        for block in (8, 64):
            found, expected = top(x, count, block), x.topk(count)
            assert torch.equal(found[0], expected.values)
            assert torch.equal(found[1], expected.indices)


def test_more_beams_than_words() -> None:
    logp = torch.tensor([0.1, 0.2, 0.7]).log()
    how = Decoding(begin=0, end=2, pad=2, max_length=3, min_length=0, num_beams=4, num_return=4)
    ids = beam_search(lambda tokens, _: logp.expand(len(tokens), -1), 1, how, torch.device("cpu"))
    assert ids[0].tolist() == [0, 2, 2]
    assert ids.shape == (4, 3)
