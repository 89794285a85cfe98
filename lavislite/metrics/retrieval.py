"""Recall at k between images and texts: scores or ranked candidates in, percentages out.

Keys are LAVIS's: ``txt_*`` has images as queries (find a caption), ``img_*`` has texts as queries
(find the image). A query with several right answers is a hit as soon as one of them is among the
first k. Ties count against the scorer: a wrong item with an equal score comes before the right one,
so a scorer that returns a constant gets 0 and not a lucky number (LAVIS lets its sorting decide). A
warning says how many queries that concerns. Scores that are NaN are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]

KS = (1, 5, 10)
MISS = int(np.iinfo(np.int64).max)  # rank of an answer that is not among the candidates


def recalls(
    scores: Any,
    image_to_texts: Sequence[Sequence[int]],
    text_to_image: Sequence[int],
    ks: Sequence[int] = KS,
    *,
    scores_t2i: Any | None = None,
) -> dict[str, float]:
    """Recalls of a full score table.

    Args:
        scores: [N images, M texts], array or tensor, higher is better.
        image_to_texts: for each image the indices of its captions.
        text_to_image: for each text the index of its image.
        scores_t2i: [M, N] when the two directions have tables of their own.

    Returns:
        ``txt_r1 ... txt_r_mean, img_r1 ... img_r_mean, r_mean, agg_metrics`` in percent;
        `agg_metrics` is `txt_r_mean`, as in LAVIS.

    Raises:
        ValueError: NaN among the scores, a shape that does not fit, or a query without an answer.
    """
    i2t = _as_array(scores)
    t2i = i2t.T if scores_t2i is None else _as_array(scores_t2i)
    _check_gallery(image_to_texts, text_to_image)
    text_ranks = ranks(i2t, image_to_texts, gallery=len(text_to_image))
    image_ranks = ranks(t2i, [[i] for i in text_to_image], gallery=len(image_to_texts))
    return recalls_from_ranks(text_ranks, image_ranks, ks)


def recalls_from_candidates(
    text_candidates: Any,
    text_scores: Any,
    image_candidates: Any,
    image_scores: Any,
    image_to_texts: Sequence[Sequence[int]],
    text_to_image: Sequence[int],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Recalls of short lists: each query scored only some candidates; the others are misses.

    Args:
        text_candidates: [N, k] text indices per image, in any order.
        text_scores: [N, k] their scores.
        image_candidates: [M, k'] image indices per text.
        image_scores: [M, k'] their scores.

    Returns:
        As `recalls`.

    Raises:
        ValueError: as `recalls`.
    """
    _check_gallery(image_to_texts, text_to_image)
    text_ranks = candidate_ranks(text_candidates, text_scores, image_to_texts)
    image_ranks = candidate_ranks(image_candidates, image_scores, [[i] for i in text_to_image])
    return recalls_from_ranks(text_ranks, image_ranks, ks)


def recalls_from_ranks(
    text_ranks: Ranks, image_ranks: Ranks, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Recalls from each query's 0-based rank of its best right answer ([N] images, [M] texts)."""
    return _summary(
        {k: 100.0 * float(np.mean(text_ranks < k)) for k in ks},
        {k: 100.0 * float(np.mean(image_ranks < k)) for k in ks},
    )


def chance_recalls(
    image_to_texts: Sequence[Sequence[int]],
    text_to_image: Sequence[int],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """What a random ranking gets on average: the same keys as `recalls`, each with ``chance_``."""
    _check_gallery(image_to_texts, text_to_image)
    n_images, n_texts = len(image_to_texts), len(text_to_image)
    right = np.bincount([len(texts) for texts in image_to_texts])

    def hit(k: int) -> float:  # 1 - P(none of the first k is right), averaged over the images
        k = min(k, n_texts)
        miss = sum(
            int(n) * comb(n_texts - c, k) / comb(n_texts, k) for c, n in enumerate(right) if n
        )
        return 100.0 * (1.0 - miss / n_images)

    found = _summary({k: hit(k) for k in ks}, {k: 100.0 * min(k, n_images) / n_images for k in ks})
    return {f"chance_{name}": value for name, value in found.items()}


def ranks(scores: Any, answers: Sequence[Sequence[int]], *, gallery: int | None = None) -> Ranks:
    """0-based rank of the best right answer of each query: how many wrong ones score no lower.

    Args:
        scores: [queries, gallery].
        answers: for each query the indices of the right items.
        gallery: expected number of columns, when known.

    Raises:
        ValueError: NaN, a shape that does not fit, or a query without an answer.
    """
    table = _as_array(scores)
    expected = (len(answers), table.shape[-1] if gallery is None else gallery)
    if table.shape != expected:
        raise ValueError(f"Scores must be [queries, gallery] = {expected}, got {table.shape}.")
    _refuse_nan(table)
    found, tied = np.empty(len(answers), dtype=np.int64), np.empty(len(answers), dtype=bool)
    for rows in _chunks(table):
        part = table[rows]
        row, column = _flat(answers[rows])
        best = np.full(len(part), -np.inf, dtype=part.dtype)
        np.maximum.at(best, row, part[row, column])
        above = part >= best[:, None]
        above[row, column] = False
        found[rows] = above.sum(axis=1)
        tied[rows] = (above & (part == best[:, None])).any(axis=1)
    _warn_of_ties(tied)
    return found


def candidate_ranks(candidates: Any, scores: Any, answers: Sequence[Sequence[int]]) -> Ranks:
    """As `ranks`, among the candidates of each query; `MISS` where no candidate is right.

    Args:
        candidates: [queries, k] indices into the gallery, each at most once per query.
        scores: [queries, k].
    """
    index, table = _as_array(candidates), _as_array(scores)
    if index.shape != table.shape or len(table) != len(answers):
        raise ValueError(
            f"Candidates {index.shape}, scores {table.shape} and {len(answers)} queries do not fit."
        )
    _refuse_nan(table)
    found, tied = np.full(len(answers), MISS, dtype=np.int64), np.zeros(len(answers), dtype=bool)
    for query, right in enumerate(answers):
        true = np.isin(index[query], right)
        if true.any():
            best, wrong = table[query][true].max(), table[query][~true]
            found[query] = (wrong >= best).sum()
            tied[query] = (wrong == best).any()
    _warn_of_ties(tied)
    return found


def _warn_of_ties(tied: NDArray[np.bool_]) -> None:
    if tied.any():
        warnings.warn(
            f"{int(tied.sum())} of {len(tied)} queries give a wrong item the very score of the "
            f"best right one (first: query {int(tied.argmax())}); the wrong one is ranked first.",
            stacklevel=3,
        )


def _summary(text: dict[int, float], image: dict[int, float]) -> dict[str, float]:
    text_mean = sum(text.values()) / len(text)
    image_mean = sum(image.values()) / len(image)
    return {
        **{f"txt_r{k}": value for k, value in text.items()},
        "txt_r_mean": text_mean,
        **{f"img_r{k}": value for k, value in image.items()},
        "img_r_mean": image_mean,
        "r_mean": (text_mean + image_mean) / 2,
        "agg_metrics": text_mean,
    }


def _as_array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor, perhaps half precision, which numpy does not know
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _refuse_nan(table: NDArray[Any]) -> None:
    where = np.argwhere(np.isnan(table))
    if len(where):
        row, column = (int(x) for x in where[0])
        raise ValueError(
            f"{len(where)} of {table.size} scores are NaN, in {len(set(where[:, 0].tolist()))} of "
            f"{len(table)} queries (first: query {row}, item {column}). A ranking of them means "
            "nothing."
        )


def _check_gallery(image_to_texts: Sequence[Sequence[int]], text_to_image: Sequence[int]) -> None:
    if not image_to_texts or not text_to_image:
        raise ValueError("Retrieval needs at least one image and one text.")
    lonely = [i for i, texts in enumerate(image_to_texts) if not len(texts)]
    if lonely:
        raise ValueError(
            f"{len(lonely)} images have no caption (first: image {lonely[0]}); "
            "no ranking can find one."
        )
    for name, indices, size in (
        ("image_to_texts", chain.from_iterable(image_to_texts), len(text_to_image)),
        ("text_to_image", text_to_image, len(image_to_texts)),
    ):
        outside = next((i for i in indices if not 0 <= i < size), None)
        if outside is not None:
            raise ValueError(f"{name} holds {outside}, which is not within 0 ... {size - 1}.")


def _chunks(table: NDArray[Any], cells: int = 1 << 24) -> Iterator[slice]:
    # A boolean copy of COCO's 5,000 x 25,010 table at once would be needlessly big.
    step = max(1, cells // max(1, table.shape[1]))
    return (slice(start, start + step) for start in range(0, len(table), step))


def _flat(answers: Sequence[Sequence[int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    row = np.repeat(np.arange(len(answers)), [len(right) for right in answers])
    return row, np.fromiter(chain.from_iterable(answers), dtype=np.int64, count=len(row))
