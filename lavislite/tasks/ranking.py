"""Scoring a gallery: embed everything once, compare all, look closer at the best candidates.

Each process embeds its share of the images and texts and keeps its own images' tokens; only the
small features travel. The closer look (the matching head) is shared out by image: the image's keys
and values are computed once, and each image-text pair is scored once even when both its image and
its text want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext
from lavislite.common.loading import batch_indices, evaluation_batches, own_numbers, progress_bar
from lavislite.tasks.base import Row, gather_rows, split_name

RERANK_SCORES = ("itm+itc", "itm+itc/temp", "itm")
# For so many pairs a model need not copy what it knows about their image.
PAIRS_IN_A_ROW = 16


@dataclass(frozen=True)
class Gallery:
    """Images, texts, and which belong together."""

    texts: list[str]
    image_to_texts: list[list[int]]
    text_to_image: list[int]
    image_ids: list[str]
    image_paths: list[Path]

    @classmethod
    def of(cls, dataset: Any, n_images: int) -> Gallery:
        """The first `n_images` images of a retrieval dataset with their texts, renumbered.

        Raises:
            DataError: an image without a caption, or nothing at all.
        """
        kept = [t for t, image in enumerate(dataset.text_to_image) if image < n_images]
        number = {t: new for new, t in enumerate(kept)}
        to_texts = [[number[t] for t in texts] for texts in dataset.image_to_texts[:n_images]]
        lonely = [i for i, texts in enumerate(to_texts) if not texts]
        if not to_texts or lonely:
            problem = f"{dataset.record_id(lonely[0])} has no caption" if lonely else "it is empty"
            raise DataError(f"Retrieval on {split_name(dataset)} cannot be scored: {problem}.")
        return cls(
            texts=[dataset.texts[t] for t in kept],
            image_to_texts=to_texts,
            text_to_image=[dataset.text_to_image[t] for t in kept],
            image_ids=[str(i) for i in dataset.image_ids[:n_images]],
            image_paths=[Path(p) for p in dataset.image_paths[:n_images]],
        )


@dataclass(frozen=True)
class ImageBatch:
    """Images of one batch: their indices and tokens [b, T, D], on the device or the host."""

    index: list[int]
    image_embeds: Tensor


def embed_images(
    model: Any, dataset: Any, ctx: EvalContext, *, keep_tokens: bool
) -> tuple[Tensor, dict[int, ImageBatch]]:
    """Features [N, Q, E] of all images, and this process's batches by number (if kept).

    Raises:
        DataError: an image cannot be read.
    """
    batches = batch_indices(len(dataset), ctx.batch_size, ctx.limit_batches)
    rows: list[Row] = []
    own: dict[int, ImageBatch] = {}
    for k, samples in evaluation_batches(dataset, ctx, batches, f"{split_name(dataset)} images"):
        with ctx.autocast():
            embedded = model.embed_image(samples["image"])
            tokens = _compute_dtype(embedded.image_embeds)
        index = samples["index"].tolist()
        features = embedded.image_feats.float().cpu().numpy()
        rows += [{"index": i, "features": f} for i, f in zip(index, features, strict=True)]
        if keep_tokens:
            host = _is_large(tokens, len(own_numbers(len(batches))))
            own[k] = ImageBatch(index, tokens.cpu() if host else tokens)
    expected = [i for batch in batches for i in batch]
    rows = gather_rows(rows, "index", expected, dataset)
    features = torch.from_numpy(np.stack([row["features"] for row in rows]))
    return features.to(ctx.device), own


def embed_texts(
    model: Any, texts: Sequence[str], ctx: EvalContext, batch_size: int, dataset: Any
) -> Tensor:
    """Features [M, E] of all texts; each process computes its share, of texts of one length."""
    order = sorted(range(len(texts)), key=lambda t: len(texts[t]))
    batches = batch_indices(len(texts), batch_size, order=order)
    rows: list[Row] = []
    own = own_numbers(len(batches))
    for k in progress_bar(own, ctx, f"{split_name(dataset)} texts"):
        with ctx.autocast():
            features = model.embed_text([texts[t] for t in batches[k]])
        rows.append({"batch": k, "features": features.float().cpu().numpy()})
    rows = gather_rows(rows, "batch", range(len(batches)), dataset)
    features = torch.from_numpy(np.concatenate([row["features"] for row in rows]))
    return features[torch.tensor(order).argsort()].to(ctx.device)


def similarity(image_feats: Tensor, text_feats: Tensor) -> Tensor:
    """Cosine of each text with its best query of each image.

    Args:
        image_feats: [N, Q, E], L2-normalised.
        text_feats: [M, E], L2-normalised.

    Returns:
        [N, M] on the host.
    """
    n_queries, n_texts = image_feats.shape[1], len(text_feats)
    step = max(1, (1 << 26) // max(1, n_queries * n_texts))  # 256 MiB of float32 at a time
    return torch.cat([(part @ text_feats.T).amax(dim=1).cpu() for part in image_feats.split(step)])


@dataclass(frozen=True)
class Candidates:
    """The best texts per image [N, k] and the best images per text [M, k'], best first."""

    texts: Tensor
    images: Tensor

    @classmethod
    def best(cls, similarity: Tensor, k: int) -> Candidates:
        """The `k` most similar in each direction (all of them in a smaller gallery)."""
        n_images, n_texts = similarity.shape
        texts = similarity.topk(min(k, n_texts), dim=1).indices
        images = similarity.topk(min(k, n_images), dim=0).indices.T
        return cls(texts, images)

    def pairs(self, shape: tuple[int, int]) -> Tensor:
        """[N, M] bool: pairs that one side or the other wants."""
        wanted = torch.zeros(shape, dtype=torch.bool)
        wanted.scatter_(1, self.texts, True)
        wanted.T.scatter_(1, self.images, True)
        return wanted


class Matcher:
    """The matching head on pairs of images and texts of a gallery.

    Models that offer ``text_gallery(texts)``, whose result knows the ``lengths`` [M] of the texts
    in tokens, and ``score_gallery(memory, image_index, gallery, text_index)`` tokenize each text
    once; of others, ``score_itm(memory, image_index, texts)`` is asked.
    """

    def __init__(
        self, model: Any, texts: Sequence[str], ctx: EvalContext, pairs_per_forward: int
    ) -> None:
        self.model, self.texts, self.ctx = model, texts, ctx
        self.pairs_per_forward = pairs_per_forward
        self.gallery = model.text_gallery(texts) if hasattr(model, "text_gallery") else None
        known = None if self.gallery is None else self.gallery.lengths
        self.lengths = torch.tensor(list(map(len, texts))) if known is None else known

    def __call__(self, image_embeds: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """Logits [P] of pairs, on the host.

        Args:
            image_embeds: [b, T, D], the tokens of the images of one batch.
            image: LongTensor [P] into the batch.
            text: LongTensor [P] into the texts.
        """
        if not len(image):
            return torch.empty(0)
        order = order_of_pairs(image, self.lengths[text], self.pairs_per_forward)
        with self.ctx.autocast():
            tokens = image_embeds.to(self.ctx.device, non_blocking=True)
            memory = self.model.image_memory(tokens)
            parts = order.split(self.pairs_per_forward)
            logits = [self._score(memory, image[part], text[part]) for part in parts]
        scores = torch.empty(len(image))
        scores[order] = torch.cat(logits).float().cpu()
        return scores

    def _score(self, memory: Any, image: Tensor, text: Tensor) -> Tensor:
        if self.gallery is not None:
            return self.model.score_gallery(memory, image, self.gallery, text)
        texts = [self.texts[t] for t in text.tolist()]
        return self.model.score_itm(memory, image.to(self.ctx.device), texts)


def order_of_pairs(image: Tensor, length: Tensor, pairs_per_forward: int) -> Tensor:
    """In which order pairs [P] are scored, so many at a time.

    Texts of about one length together: hardly any padding. Among these, an image's pairs together,
    `PAIRS_IN_A_ROW` and more of them if there are enough.
    """
    alike = PAIRS_IN_A_ROW * len(image.unique())
    if 2 * alike > len(image):
        alike = pairs_per_forward
    parts = torch.argsort(length, stable=True).split(max(alike, pairs_per_forward))
    return torch.cat([part[torch.argsort(image[part], stable=True)] for part in parts])


def match_scores(
    matcher: Matcher, own: dict[int, ImageBatch], wanted: Tensor, dataset: Any
) -> Tensor:
    """The matching head's logit for each wanted pair.

    Args:
        own: this process's images by batch number.
        wanted: [N, M] bool, the same on every process.

    Returns:
        [N, M] float32 on the host, NaN where not wanted; the same on every process.
    """
    rows: list[Row] = []
    for k, batch in progress_bar(own.items(), matcher.ctx, f"{split_name(dataset)} re-ranking"):
        image, text = wanted[batch.index].nonzero(as_tuple=True)
        scores = matcher(batch.image_embeds, image, text)
        place = (np.asarray(batch.index, dtype=np.int32)[image], text.numpy().astype(np.int32))
        rows.append({"batch": k, "place": place, "scores": scores.numpy()})
    n_batches = len(batch_indices(len(wanted), matcher.ctx.batch_size))
    found = np.full(tuple(wanted.shape), np.nan, dtype=np.float32)
    for row in gather_rows(rows, "batch", range(n_batches), dataset):
        found[row["place"]] = row["scores"]
    return torch.from_numpy(found)


def fuse(itm: Tensor, itc: Tensor, how: str, model: Any) -> Tensor:
    """The score that orders the candidates, from match logits and similarities of one shape."""
    if how == "itm":
        return itm
    if how == "itm+itc":
        return itm + itc
    if not hasattr(model, "temp"):
        raise ConfigError(
            f"run.rerank_score: '{how}' needs a model with a temperature (temp), which "
            f"{type(model).__name__} lacks. Use itm+itc."
        )
    return itm + itc / float(model.temp)


def _compute_dtype(tokens: Tensor) -> Tensor:
    """Under autocast the next layer would round the tokens anyway: half the memory now."""
    kind = tokens.device.type
    return tokens.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tokens


def _is_large(tokens: Tensor, n_batches: int) -> bool:
    """All of this process's image tokens would fill more than a quarter of the free GPU memory."""
    if tokens.device.type != "cuda":
        return False
    return n_batches * tokens.nbytes > torch.cuda.mem_get_info(tokens.device)[0] // 4
