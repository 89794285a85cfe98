"""Finding the captions of an image and the image of a caption."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import ConfigError, TrainingError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.logging import get_logger, warn_once
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig
from lavislite.metrics.retrieval import (
    MISS,
    Ranks,
    candidate_ranks,
    chance_recalls,
    ranks,
    recalls_from_ranks,
)
from lavislite.tasks.base import Row, Task, evaluating, split_name
from lavislite.tasks.examples import Remembered, retrieval_examples
from lavislite.tasks.ranking import (
    RERANK_SCORES,
    Candidates,
    Gallery,
    Matcher,
    embed_images,
    embed_texts,
    fuse,
    match_scores,
    similarity,
)

logger = get_logger(__name__)


@dataclass
class RetrievalConfig(RunConfig):
    """How retrieval splits are ranked.

    `rerank_score` is the sum that orders the candidates: the match logit plus the cosine similarity
    (LAVIS), plus the similarity over the model's temperature, or the match logit alone.
    """

    task: str = "retrieval"
    k_test: int = 128  # candidates per query that the matching head looks at
    rerank: bool = True
    rerank_score: str = "itm+itc"
    rerank_batch_size: int = 256  # image-text pairs per forward


@catalog.tasks.register("retrieval")
class RetrievalTask(Task):
    """Fine-tuning with the model's own losses, evaluation by recall.

    Models offer ``embed_image(images) -> .image_feats [B, Q, E], .image_embeds [B, T, D]`` and
    ``embed_text(texts) -> [N, E]``; for re-ranking also ``image_memory(image_embeds)``,
    ``score_itm(memory, image_index [P], texts) -> [P]``, and what else a `Matcher` can use.
    """

    Config = RetrievalConfig
    name = "retrieval"
    evaluations: ClassVar[tuple[str, ...]] = ("retrieval",)
    default_monitor = "r_mean"
    cfg: RetrievalConfig

    def __init__(self, cfg: RetrievalConfig) -> None:
        super().__init__(cfg)
        check_options(cfg)
        self.remembered = Remembered()

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """Recalls re-ranked (plain keys), before re-ranking (``itc_``) and by ``chance_``.

        The rows are the queries, images first: the right answers, the rank of the best of them
        (from 1; None when it is not among the candidates) and the first five answers.
        """
        self.check(dataset)
        with evaluating(model):
            result = evaluate_retrieval(model, dataset, ctx, self.cfg)
        images = [row for row in result.rows if row["query"] == "image"]
        self.remembered.keep(dataset, [(i, row["rank"] == 1) for i, row in enumerate(images)])
        return result

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        with evaluating(model):
            gallery = Gallery.of(dataset, len(dataset))
            chosen = self.remembered.pick(dataset, len(dataset), n)
            return retrieval_examples(model, dataset, gallery, ctx, chosen, self.cfg)

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        return recall_table(metrics)


def check_options(cfg: RetrievalConfig) -> None:
    """Raise ConfigError naming the first option that cannot be."""
    if cfg.rerank_score not in RERANK_SCORES:
        raise ConfigError(
            f"run.rerank_score: '{cfg.rerank_score}' is unknown."
            f"{did_you_mean(cfg.rerank_score, RERANK_SCORES)} Known: {', '.join(RERANK_SCORES)}."
        )
    for key in ("k_test", "rerank_batch_size"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"run.{key}: must be at least 1, got {getattr(cfg, key)}.")


def evaluate_retrieval(
    model: Any, dataset: Any, ctx: EvalContext, cfg: RetrievalConfig
) -> EvalResult:
    """Embed, compare, re-rank, score; within `evaluating`. See `RetrievalTask.evaluate`.

    Raises:
        ConfigError: re-ranking is on and the model has no matching head.
        DataError: an image cannot be read.
        TrainingError: the model's scores are not numbers.
    """
    if cfg.rerank and not hasattr(model, "score_itm"):
        raise ConfigError(
            f"run.rerank: {type(model).__name__} has no matching head (score_itm). "
            "Set run.rerank to false."
        )
    image_feats, own = embed_images(model, dataset, ctx, keep_tokens=cfg.rerank)
    gallery = Gallery.of(dataset, len(image_feats))
    text_feats = embed_texts(model, gallery.texts, ctx, cfg.rerank_batch_size, dataset)
    itc = similarity(image_feats, text_feats)
    candidates = Candidates.best(itc, cfg.k_test)
    fused = itc
    if cfg.rerank:
        _report_clamping(cfg.k_test, gallery, dataset)
        wanted = candidates.pairs((len(itc), itc.shape[1]))
        matcher = Matcher(model, gallery.texts, ctx, cfg.rerank_batch_size)
        itm = match_scores(matcher, own, wanted, dataset)
        fused = fuse(itm, itc, cfg.rerank_score, model)
    where = split_name(dataset)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        try:
            result = _result(itc, fused if cfg.rerank else None, candidates, gallery)
        except ValueError as error:
            raise TrainingError(f"Retrieval on {where}: {error}") from error
    for warning in found:  # ties, which a constant model has everywhere
        warn_once(logger, ("recall", where, str(warning.message)), f"{where}: {warning.message}")
    return result


def recall_table(metrics: dict[str, float]) -> list[list[str]]:
    """Recalls as a table: re-ranked, before re-ranking, by chance; one block per split."""
    columns = {
        f"{short}@{k}": f"{long}_r{k}"
        for short, long in (("TR", "txt"), ("IR", "img"))
        for k in (1, 5, 10)
    } | {"mean": "r_mean"}
    table: list[list[str]] = []
    for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "r_mean"]:
        start = path.removesuffix("r_mean")
        table.append([start.rstrip("/") or "recall %", *columns])
        for title, prefix in (("re-ranked", ""), ("ITC", "itc_"), ("chance", "chance_")):
            keys = [f"{start}{prefix}{key}" for key in columns.values()]
            # Without re-ranking the plain numbers are the ITC numbers: once is enough.
            repeated = not prefix and all(metrics[k] == metrics[_itc(k)] for k in keys)
            if not repeated:
                table.append([title, *(f"{metrics[key]:.1f}" for key in keys)])
    return table


def _itc(path: str) -> str:
    head, slash, metric = path.rpartition("/")
    return f"{head}{slash}itc_{metric}"


def _report_clamping(k: int, gallery: Gallery, dataset: Any) -> None:
    n_images, n_texts = len(gallery.image_ids), len(gallery.texts)
    if k > min(n_images, n_texts):
        message = (
            f"{split_name(dataset)} has {n_images} images and {n_texts} texts: run.k_test {k} "
            f"becomes {min(k, n_texts)} texts per image and {min(k, n_images)} images per text."
        )
        warn_once(logger, ("k_test", split_name(dataset)), message)


def _result(
    itc: Tensor, fused: Tensor | None, candidates: Candidates, gallery: Gallery
) -> EvalResult:
    """Metrics and rows; `fused` is None without re-ranking.

    Raises:
        ValueError: scores are NaN.
    """
    right_images = [[i] for i in gallery.text_to_image]
    itc_ranks = ranks(itc, gallery.image_to_texts), ranks(itc.T, right_images)
    scores = itc if fused is None else fused
    text_scores = scores.gather(1, candidates.texts)
    image_scores = scores.T.gather(1, candidates.images)
    final_ranks = itc_ranks
    if fused is not None:
        final_ranks = (
            candidate_ranks(candidates.texts, text_scores, gallery.image_to_texts),
            candidate_ranks(candidates.images, image_scores, right_images),
        )
    metrics = {
        **recalls_from_ranks(*final_ranks),
        **{f"itc_{name}": value for name, value in recalls_from_ranks(*itc_ranks).items()},
        **chance_recalls(gallery.image_to_texts, gallery.text_to_image),
    }
    for unused in ("itc_agg_metrics", "chance_agg_metrics"):
        del metrics[unused]
    top_texts = _top(candidates.texts, text_scores)
    top_images = _top(candidates.images, image_scores)
    rows = _image_rows(gallery, itc_ranks[0], final_ranks[0], *top_texts)
    rows += _text_rows(gallery, itc_ranks[1], final_ranks[1], *top_images)
    return EvalResult(metrics, rows)


def _top(candidates: Tensor, scores: Tensor, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    best = scores.topk(min(n, scores.shape[1]), dim=1)
    return candidates.gather(1, best.indices).numpy(), best.values.numpy()


def _image_rows(
    gallery: Gallery, itc: Ranks, final: Ranks, top: np.ndarray, scores: np.ndarray
) -> list[Row]:
    return [
        {
            "query": "image",
            "id": gallery.image_ids[i],
            "image": str(gallery.image_paths[i]),
            "references": [gallery.texts[t] for t in gallery.image_to_texts[i]],
            "itc_rank": _place(itc[i]),
            "rank": _place(final[i]),
            "top": [
                {
                    "text": gallery.texts[t],
                    "score": float(s),
                    "correct": gallery.text_to_image[t] == i,
                }
                for t, s in zip(top[i].tolist(), scores[i].tolist(), strict=True)
            ],
        }
        for i in range(len(gallery.image_ids))
    ]


def _text_rows(
    gallery: Gallery, itc: Ranks, final: Ranks, top: np.ndarray, scores: np.ndarray
) -> list[Row]:
    return [
        {
            "query": "text",
            "id": str(t),
            "text": gallery.texts[t],
            "references": [gallery.image_ids[gallery.text_to_image[t]]],
            "itc_rank": _place(itc[t]),
            "rank": _place(final[t]),
            "top": [
                {
                    "id": gallery.image_ids[i],
                    "image": str(gallery.image_paths[i]),
                    "score": float(s),
                    "correct": gallery.text_to_image[t] == i,
                }
                for i, s in zip(top[t].tolist(), scores[t].tolist(), strict=True)
            ],
        }
        for t in range(len(gallery.texts))
    ]


def _place(rank: np.int64) -> int | None:
    return None if rank == MISS else int(rank) + 1
