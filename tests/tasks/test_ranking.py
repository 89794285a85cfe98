"""The matching head over a gallery: every pair once, texts tokenized once, scores as one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lavislite.common.evaluation import EvalContext
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.tasks.ranking import PAIRS_IN_A_ROW, Matcher, order_of_pairs
from tests.models.reference import reference_model

WORDS = ["two", "happy dogs", "eat near the small table", "of the old man", "a red cat", "it"]


@pytest.fixture(scope="module")
def model() -> Blip2Qformer:
    return reference_model().eval()


@pytest.fixture(scope="module")
def images(model: Blip2Qformer) -> torch.Tensor:
    return model.encode_image(torch.randn(3, 3, 56, 56)).detach()


def texts(n: int) -> list[str]:
    return [" ".join(WORDS[(t + k) % 6] for k in range(1 + t % 4)) for t in range(n)]


@pytest.mark.parametrize("n", [7, 60])  # few pairs of each image, and many
@torch.no_grad()
def test_scores_are_those_of_pairs_by_themselves(
    model: Blip2Qformer, images: torch.Tensor, n: int
) -> None:
    gallery, pairs = texts(n), torch.randperm(3 * n)[: 3 * n - 5]
    image, text = pairs // n, pairs % n
    found = Matcher(model, gallery, EvalContext(), 16)(images, image, text)
    memory = model.image_memory(images)
    for p, (i, t) in enumerate(zip(image.tolist(), text.tolist(), strict=True)):
        alone = model.score_itm(memory, torch.tensor([i]), [gallery[t]])
        torch.testing.assert_close(found[p], alone[0], rtol=1e-5, atol=1e-5)


def test_texts_are_tokenized_once(
    model: Blip2Qformer, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    tokenizer = model.pack.tokenizer

    def tokenize(given: list[str], **options: object) -> object:
        seen.extend(given)
        return tokenizer(given, **options)

    tokenize.sep_token_id = tokenizer.sep_token_id  # type: ignore[attr-defined]
    tokenize.pad_token_id = tokenizer.pad_token_id  # type: ignore[attr-defined]
    monkeypatch.setattr(model.pack, "tokenizer", tokenize)
    gallery = texts(8)
    matcher = Matcher(model, gallery, EvalContext(), 4)
    every = torch.arange(24)
    with torch.no_grad():
        matcher(images, every // 8, every % 8)
        matcher(images[:1], torch.zeros(8, dtype=torch.long), torch.arange(8))
    assert seen == gallery


@pytest.mark.parametrize("each", [20, 100])
def test_pairs_in_an_order_that_saves_work(each: int) -> None:
    image = torch.arange(8).repeat_interleave(each)
    length = torch.randint(5, 25, (8 * each,))
    order = order_of_pairs(image, length, 32)
    assert sorted(order.tolist()) == list(range(8 * each))
    padded = sum(len(part) * int(length[part].max()) for part in order.split(32))
    assert padded < 1.35 * int(length.sum())
    groups = [len(image[part].unique_consecutive()) for part in order.split(32)]
    if each > 2 * PAIRS_IN_A_ROW:  # an image's pairs stand together
        assert sum(groups) / len(groups) < 4  # of 8


def test_the_slow_path_gives_the_same_scores(
    model: Blip2Qformer, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "peers", raising=False)
    from peers.retrieval import peer_rerank

    gallery = texts(6)
    of_images, of_texts = peer_rerank(model, images, gallery, torch.rand(3, 6), 2)
    every = torch.arange(18)
    with torch.no_grad():
        ours = Matcher(model, gallery, EvalContext(), 8)(images, every // 6, every % 6).view(3, 6)
    for theirs, best in ((of_images, 1), (of_texts, 0)):
        wanted = ~theirs.isnan()
        assert (wanted.sum(best) == 2).all()
        torch.testing.assert_close(ours[wanted], theirs[wanted], rtol=1e-4, atol=1e-4)
