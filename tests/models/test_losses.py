"""The objectives as plain functions, against numbers worked out by hand or by definition."""

from __future__ import annotations

import math

import pytest
import torch

from lavislite.models.blip2 import losses


def test_a_text_is_compared_with_its_best_query() -> None:
    image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    text = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    found = losses.best_query_similarity(image, text)
    torch.testing.assert_close(found, torch.tensor([[0.8, 1.0]]))


def test_rows_of_the_same_image_share_the_target() -> None:
    same = torch.tensor([[True, False, True], [False, True, False]])
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(losses.contrastive_targets(same), expected)


def test_contrastive_loss_of_equal_similarities_is_log_n() -> None:
    sim, targets = torch.zeros(3, 5), torch.eye(3, 5)
    loss = losses.contrastive_loss(sim, sim, targets, label_smoothing=0.1)
    assert loss.item() == pytest.approx(math.log(5))


def test_contrastive_loss_smooths_as_the_original() -> None:
    sim_i2t, sim_t2i = torch.randn(4, 6), torch.randn(4, 6)
    targets = losses.contrastive_targets(torch.eye(4, 6, dtype=torch.bool))
    smooth = 0.9 * targets + 0.1 / 6
    by_hand = [-(sim.log_softmax(1) * smooth).sum(1).mean() for sim in (sim_i2t, sim_t2i)]
    torch.testing.assert_close(
        losses.contrastive_loss(sim_i2t, sim_t2i, targets, 0.1), sum(by_hand) / 2
    )


def test_negatives_are_drawn_with_their_weights() -> None:
    sim = torch.tensor([[9.0, 1.0, 2.0], [0.0, 9.0, 0.0], [3.0, 0.0, 9.0]])
    same = torch.eye(3, dtype=torch.bool)
    weights = losses.negative_weights(sim, same)
    generator = torch.Generator().manual_seed(0)
    counts, draws = torch.zeros(3, 3), 4000
    for _ in range(draws):
        drawn = losses.draw_negatives(sim, same, generator, first_row=0)
        counts += torch.nn.functional.one_hot(drawn, 3)
    assert torch.equal(weights.diagonal(), torch.zeros(3))
    torch.testing.assert_close(counts / draws, weights, atol=0.03, rtol=0)


def test_two_halves_draw_what_the_whole_draws() -> None:
    sim, same = torch.randn(6, 6), torch.eye(6, dtype=torch.bool)
    whole = losses.draw_negatives(sim, same, torch.Generator().manual_seed(5), 0)
    halves = [
        losses.draw_negatives(
            sim[rows], same[rows], torch.Generator().manual_seed(5), first_row=rows.start
        )
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert torch.equal(torch.cat(halves), whole)


def test_a_lower_sharpness_spreads_the_negatives() -> None:
    sim, same = torch.tensor([[0.0, 4.0, 0.0]]), torch.tensor([[True, False, False]])
    sharp = losses.negative_weights(sim, same)[0, 1]
    soft = losses.negative_weights(sim, same, sharpness=0.5)[0, 1]
    assert 0.5 < soft < sharp


def test_matching_loss_labels_one_third_as_true() -> None:
    logits = torch.tensor([[0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    total, count = losses.matching_loss(logits, torch.tensor([True]))
    assert count == 3
    assert total.item() == pytest.approx(3 * math.log(1 + math.exp(-2)))


def test_language_loss_sums_over_tokens() -> None:
    loss = losses.language_loss(torch.zeros(3, 7), torch.tensor([0, 1, 6]), 0.1)
    assert loss.item() == pytest.approx(3 * math.log(7), rel=1e-5)
