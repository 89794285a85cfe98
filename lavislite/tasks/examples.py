"""Pictures, captions and attention maps for the report. One process, no collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isqrt
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavislite.common.evaluation import EvalContext
from lavislite.common.loading import to_device
from lavislite.tasks.base import Row, split_name
from lavislite.tasks.ranking import Gallery, Matcher, fuse, similarity

if TYPE_CHECKING:
    from lavislite.tasks.retrieval import RetrievalConfig


RIGHT = 0.5  # from this score on, an answer is called right


def pick(total: int, n: int) -> list[int]:
    """`n` of `total` indices, evenly spread (all of them when there are fewer)."""
    n = min(n, total)
    return [i * total // n for i in range(n)]


class Remembered:
    """Which records of the splits evaluated last went well and which badly, to choose examples."""

    def __init__(self, kept: int = 32) -> None:
        self.kept = kept  # of each kind and split
        self._found: dict[str, tuple[list[int], list[int]]] = {}

    def keep(
        self, dataset: Any, scores: Iterable[tuple[int, float]], least: float | None = RIGHT
    ) -> None:
        """Forget what was known of the split, and keep some that got at least `least`, some below.

        Args:
            scores: record number and score.
            least: None is the median, for scores that know no right and wrong.
        """
        known = list(scores)
        if least is None:
            least = median(score for _, score in known) if known else 0.0
        sides = (
            [i for i, score in known if score >= least],
            [i for i, score in known if not score >= least],
        )
        good, bad = ([side[k] for k in pick(len(side), self.kept)] for side in sides)
        self._found[split_name(dataset)] = (good, bad)

    def pick(self, dataset: Any, total: int, n: int) -> list[int]:
        """`n` records in their order, half of them bad as far as there are so many.

        Evenly spread over all `total` records when nothing is known.
        """
        good, bad = self._found.get(split_name(dataset), ([], []))
        n_bad = min(len(bad), max(n // 2, n - len(good)))
        chosen = [(bad, n_bad), (good, n - n_bad)]
        return sorted(side[k] for side, m in chosen for k in pick(len(side), m)) or pick(total, n)


def verdict(score: float) -> str:
    """A score of 0 ... 1 in words."""
    return "right" if score >= RIGHT else "partly right" if score > 0 else "wrong"


def retrieval_examples(
    model: Any,
    dataset: Any,
    gallery: Gallery,
    ctx: EvalContext,
    chosen: Sequence[int],
    cfg: RetrievalConfig,
    n_captions: int = 5,
) -> list[Row]:
    """The chosen images with their best captions from the whole gallery.

    Returns:
        Per image: ``id``, ``image`` (path), ``captions`` (list of ``text, score, correct``, best
        first), ``truth`` (its own captions), ``verdict`` ("right" when a true caption comes first)
        and ``score`` (in words), ``generated`` (text or None), ``attention`` ([h, w] or None).
    """
    samples = load(dataset, chosen, ctx)
    if not samples:
        return []
    with ctx.autocast():
        embedded = model.embed_image(samples["image"])
    texts = gallery.texts
    itc = similarity(embedded.image_feats.float(), _text_features(model, texts, ctx, cfg))
    best = itc.topk(min(cfg.k_test if cfg.rerank else n_captions, len(texts)), dim=1).indices
    scores = itc.gather(1, best)
    if cfg.rerank:
        image = torch.arange(len(best)).repeat_interleave(best.shape[1])
        matcher = Matcher(model, texts, ctx, cfg.rerank_batch_size)
        itm = matcher(embedded.image_embeds, image, best.flatten())
        scores = fuse(itm.view_as(scores), scores, cfg.rerank_score, model)
    top = scores.topk(min(n_captions, scores.shape[1]), dim=1)
    best = best.gather(1, top.indices)
    found = []
    for row, i in enumerate(samples["index"].tolist()):
        right = set(gallery.image_to_texts[i])
        captions = [
            {"text": texts[t], "score": score, "correct": t in right}
            for t, score in zip(best[row].tolist(), top.values[row].tolist(), strict=True)
        ]
        truth = [texts[t] for t in gallery.image_to_texts[i]]
        path = str(gallery.image_paths[i])
        place = next((k for k, c in enumerate(captions, start=1) if c["correct"]), None)
        found.append(
            {
                "id": gallery.image_ids[i],
                "image": path,
                "captions": captions,
                "truth": truth,
                "verdict": "right" if place == 1 else "wrong",
                "score": f"true caption at rank {place}" if place else "no true caption",
            }
        )
    return _with_model_views(model, samples, found, ctx)


def caption_examples(
    model: Any, dataset: Any, ctx: EvalContext, chosen: Sequence[int]
) -> list[Row]:
    """The chosen samples of a caption dataset; rows as in `retrieval_examples`."""
    samples = load(dataset, chosen, ctx)
    if not samples:
        return []
    found: list[Row] = [
        {"id": dataset.record_id(i), "image": picture(image), "captions": [], "truth": [text]}
        for i, image, text in zip(
            samples["index"].tolist(), samples["image"], samples["text_input"], strict=True
        )
    ]
    return _with_model_views(model, samples, found, ctx)


def generated_examples(
    model: Any,
    pictures: Any,
    ctx: EvalContext,
    chosen: Sequence[int],
    write: Callable[[Any, dict[str, Any]], list[str]],
) -> list[Row]:
    """The chosen pictures with the text that ``write(model, samples)`` gives each.

    Args:
        pictures: one sample per picture, with `image_ids`, `image_paths` and ``references(index)``.

    Returns:
        Rows as in `retrieval_examples`, without captions to choose from.
    """
    samples = load(pictures, chosen, ctx)
    if not samples:
        return []
    found: list[Row] = [
        {
            "id": str(pictures.image_ids[i]),
            "image": str(pictures.image_paths[i]),
            "captions": [],
            "truth": pictures.references(i),
        }
        for i in samples["index"].tolist()
    ]
    return _with_model_views(model, samples, found, ctx, write)


def load(dataset: Any, chosen: Sequence[int], ctx: EvalContext) -> dict[str, Any]:
    """The chosen samples as one batch on the device; unreadable ones are left out."""
    return to_device(dataset.collate([dataset[i] for i in chosen]), ctx.device)


def picture(image: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] normalised image -> [H, W, 3] bytes; contrast stretched, statistics unknown."""
    low, high = image.float().aminmax()
    scaled = (image.float() - low) / (high - low).clamp_min(1e-6)
    return (scaled * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def attention_map(attention: Tensor) -> NDArray[np.float32] | None:
    """[heads, Q, T] probabilities over image tokens -> [h, w], mean over heads and queries.

    A class token in front is left out. None when the patches do not form a square.
    """
    weights = attention.float().mean(dim=(0, 1))
    patches = next((n for n in (len(weights), len(weights) - 1) if n and isqrt(n) ** 2 == n), None)
    if patches is None:
        return None
    side = isqrt(patches)
    return weights[len(weights) - patches :].reshape(side, side).cpu().numpy()


def _text_features(
    model: Any, texts: Sequence[str], ctx: EvalContext, cfg: RetrievalConfig
) -> Tensor:
    step = cfg.rerank_batch_size
    with ctx.autocast():
        parts = [model.embed_text(list(texts[at : at + step])) for at in range(0, len(texts), step)]
    return torch.cat(parts).float()


def _with_model_views(
    model: Any,
    samples: dict[str, Any],
    rows: list[Row],
    ctx: EvalContext,
    write: Callable[[Any, dict[str, Any]], list[str]] | None = None,
) -> list[Row]:
    """Add what the model says about each image and where it looks, as far as it can tell."""
    generated: Sequence[str | None] = [None] * len(rows)
    maps: Sequence[NDArray[np.float32] | None] = [None] * len(rows)
    with ctx.autocast():
        if write is not None:
            generated = write(model, samples)
        elif hasattr(model, "generate"):
            generated = model.generate({"image": samples["image"]})
        shown = [_shown_text(row, said) for row, said in zip(rows, generated, strict=True)]
        seen = {"image": samples["image"], "text_input": shown}
        if hasattr(model, "cross_attention"):
            layers = model.cross_attention(seen)  # [B, layers, heads, Q, T]
            maps = [attention_map(attention) for attention in layers[:, -1]]
    return [
        {**row, "generated": text, "attention": view}
        for row, text, view in zip(rows, generated, maps, strict=True)
    ]


def _shown_text(row: Row, generated: str | None) -> str:
    """The text to look for in the picture: the best of the gallery, a true one, or the model's."""
    if row["captions"]:
        return row["captions"][0]["text"]
    return row["truth"][0] if row["truth"] else generated or ""
