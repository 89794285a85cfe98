"""Recall at k: equal to the reference without ties, honest with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lavislite.metrics.retrieval import (
    MISS,
    candidate_ranks,
    chance_recalls,
    ranks,
    recalls,
    recalls_from_candidates,
)

DATA = Path(__file__).parents[1] / "data" / "metrics"


def gallery(n_images: int, per_image: int) -> tuple[list[list[int]], list[int]]:
    to_texts = [list(range(i * per_image, (i + 1) * per_image)) for i in range(n_images)]
    return to_texts, [i for i in range(n_images) for _ in range(per_image)]


def reference() -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    tables = np.load(DATA / "retrieval_metrics.npz")
    expected = json.loads((DATA / "retrieval_metrics.json").read_text())["metrics"]
    return tables["scores_i2t"], tables["scores_t2i"], expected


def test_equals_the_reference_where_there_are_no_ties() -> None:
    i2t, t2i, expected = reference()
    assert recalls(i2t, *gallery(20, 3), scores_t2i=t2i) == pytest.approx(expected, abs=1e-9)


def test_a_tensor_and_an_array_score_the_same() -> None:
    i2t, _, _ = reference()
    assert recalls(torch.from_numpy(i2t), *gallery(20, 3)) == recalls(i2t, *gallery(20, 3))


def test_full_candidate_lists_in_any_order_equal_the_full_table() -> None:
    i2t, t2i, expected = reference()
    rng = np.random.default_rng(0)
    text_order = rng.permuted(np.tile(np.arange(60), (20, 1)), axis=1)
    image_order = rng.permuted(np.tile(np.arange(20), (60, 1)), axis=1)
    found = recalls_from_candidates(
        text_order,
        np.take_along_axis(i2t, text_order, 1),
        image_order,
        np.take_along_axis(t2i, image_order, 1),
        *gallery(20, 3),
    )
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_perfect_scorer_gets_100_and_a_constant_one_0() -> None:
    to_texts, to_image = gallery(15, 2)
    perfect = np.array([[float(to_image[t] == i) for t in range(30)] for i in range(15)])
    assert set(recalls(perfect, to_texts, to_image).values()) == {100.0}
    with pytest.warns(UserWarning, match="give a wrong item the very score") as said:
        assert set(recalls(np.zeros((15, 30)), to_texts, to_image).values()) == {0.0}
    first = [str(warning.message).partition(" give")[0] for warning in said]
    assert first == ["15 of 15 queries", "30 of 30 queries"]


@pytest.mark.filterwarnings("ignore:1 of 1 queries give a wrong item")
def test_a_tie_counts_as_a_wrong_item_ahead() -> None:
    # Right item 1 ties with wrong item 2 and beats item 0: rank 1, whichever way one sorts.
    assert ranks([[0.1, 0.9, 0.9]], [[1]]).tolist() == [1]
    assert ranks([[0.9, 0.9, 0.1]], [[1]]).tolist() == [1]
    # A tie between two right items hurts nobody.
    assert ranks([[0.1, 0.9, 0.9]], [[1, 2]]).tolist() == [0]


def test_ties_are_counted_and_said() -> None:
    says = "1 of 2 queries give a wrong item the very score.*first: query 1"
    with pytest.warns(UserWarning, match=says):
        assert ranks([[0.9, 0.1], [0.8, 0.8]], [[0], [1]]).tolist() == [0, 1]
    with pytest.warns(UserWarning, match=says):
        found = candidate_ranks([[0, 1], [0, 1]], [[0.9, 0.1], [0.8, 0.8]], [[0], [1]])
    assert found.tolist() == [0, 1]


def test_without_ties_nothing_is_said(recwarn: pytest.WarningsRecorder) -> None:
    i2t, t2i, _ = reference()
    recalls(i2t, *gallery(20, 3), scores_t2i=t2i)
    assert not recwarn.list


def test_any_caption_of_the_image_is_a_hit() -> None:
    scores = np.array([[0.0, 5.0, 4.0, 3.0], [9.0, 0.0, 8.0, 1.0]])
    found = recalls(scores, [[0, 1], [2, 3]], [0, 0, 1, 1], ks=(1, 2))
    assert found["txt_r1"] == 50.0  # image 0 finds text 1; image 1 finds text 0 first
    assert found["txt_r2"] == 100.0
    assert found["img_r1"] == 50.0  # texts 0 and 3 prefer the other image


def test_images_may_have_different_numbers_of_captions() -> None:
    scores = np.eye(3)[:, [0, 0, 0, 1, 2, 2]]
    found = recalls(scores, [[0, 1, 2], [3], [4, 5]], [0, 0, 0, 1, 2, 2])
    assert found["txt_r1"] == found["img_r1"] == 100.0


def test_nan_is_refused_with_its_place() -> None:
    scores = np.zeros((4, 8))
    scores[2, 5] = scores[2, 6] = np.nan
    with pytest.raises(ValueError, match=r"2 of 32 scores are NaN.*1 of 4.*query 2, item 5"):
        recalls(scores, *gallery(4, 2))


def test_half_precision_tensors_are_accepted() -> None:
    scores = torch.eye(4, dtype=torch.bfloat16)
    assert recalls(scores, *gallery(4, 1))["r_mean"] == 100.0


def test_a_right_answer_outside_the_candidates_is_a_miss_at_any_k() -> None:
    found = candidate_ranks([[3, 1], [0, 2]], [[0.5, 0.4], [0.1, 0.2]], [[1], [1]])
    assert found.tolist() == [1, MISS]
    result = recalls_from_candidates(
        [[0], [0]], [[1.0], [1.0]], [[0], [1]], [[1.0], [1.0]], [[0], [1]], [0, 1], ks=(1, 10)
    )
    assert result["txt_r1"] == result["txt_r10"] == 50.0
    assert result["img_r1"] == 100.0


@pytest.mark.parametrize(
    ("to_texts", "to_image", "message"),
    [
        ([[0], []], [0], "1 images have no caption"),
        ([[0], [7]], [0, 1], "image_to_texts holds 7"),
        ([[0], [1]], [0, -1], "text_to_image holds -1"),
        ([], [], "at least one image"),
    ],
)
def test_an_impossible_gallery_is_refused(
    to_texts: list[list[int]], to_image: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recalls(np.zeros((len(to_texts), len(to_image))), to_texts, to_image)


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\), got \(8, 4\)"):
        recalls(np.zeros((8, 4)), *gallery(4, 2))


def test_chance_is_what_random_scores_get() -> None:
    to_texts, to_image = [[0, 1, 2], [3], [4, 5], [6, 7, 8], [9, 10, 11]], None
    to_image = [i for i, texts in enumerate(to_texts) for _ in texts]
    rng = np.random.default_rng(3)
    runs = [recalls(rng.random((5, 12)), to_texts, to_image) for _ in range(3000)]
    chance = chance_recalls(to_texts, to_image)
    for key in runs[0]:
        assert chance[f"chance_{key}"] == pytest.approx(np.mean([r[key] for r in runs]), abs=1.0)
    assert chance["chance_img_r10"] == 100.0  # ten of five images
