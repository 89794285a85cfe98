"""BLIP-2 stage 1: a Q-Former learns to read a frozen image tower (contrast, matching, captions)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lavislite.common import catalog, distributed
from lavislite.models.blip2 import losses
from lavislite.models.blip2.base import OBJECTIVES, TEMPERATURE_RANGE, Blip2Config, ImageEmbedding
from lavislite.models.blip2.inference import Blip2Inference
from lavislite.models.blip2.layers import KeyValue, QFormerConfig
from lavislite.models.blip2.qformer import ImageMemory
from lavislite.models.blip2.text import TextBatch
from lavislite.models.blip2.words import Words

__all__ = ["Blip2Config", "Blip2Qformer", "ImageEmbedding", "ImageMemory", "QFormerConfig"]


class Negatives(NamedTuple):
    image_for_text: Tensor  # [b] global row of an image that does not show what text b says
    text_for_image: Tensor  # [b]


@catalog.models.register("blip2")
@catalog.models.register("blip2_qformer")
@catalog.models.register("blip2_feature_extractor")
class Blip2Qformer(Blip2Inference):
    """A stage-1 model: `forward` computes the three losses, and all of inference is inherited."""

    @property
    def leaves_parameters_unused(self) -> bool:
        return len(set(self.cfg.objectives)) < len(OBJECTIVES)

    def forward(
        self, samples: dict[str, Any], negatives: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch; in training the processes share their rows as negatives.

        Args:
            samples: ``image`` [b, 3, H, W] or ``image_features`` (see `features_of`),
                ``text_input`` (b strings) or ``text_tokens`` (`text_preparer`), perhaps
                ``image_id`` [b]: rows with the same id are not each other's negatives.
            negatives: (image row for each text, text row for each image), instead of drawing them.

        Returns:
            loss_itc, loss_itm and loss_lm, as far as `cfg.objectives` has them (itg's is loss_lm),
            and loss, their sum. With several processes, the *mean* over them is the loss of the
            whole batch.
        """
        wanted, found = self.cfg.objectives, dict[str, Tensor]()
        text = self.text_of(samples)
        image = self.tokens_of(self.features_of(samples))
        memory = self.memory_of(image)
        queries, cache = self.Qformer.encode_queries(self.query_tokens, memory)
        words = self.Qformer.words()
        if "itc" in wanted:
            same = self._same_image(samples, len(image))
            sim_i2t, sim_t2i = self._contrast(queries, text, words)
            found["loss_itc"] = losses.contrastive_loss(
                sim_i2t, sim_t2i, losses.contrastive_targets(same), self.cfg.label_smoothing
            )
        if "itm" in wanted:  # and therefore itc
            chosen = self._negatives(sim_i2t, sim_t2i, same, negatives)
            pairs = self._triplets(text, image, memory, chosen, words)
            found["loss_itm"] = self._matching(pairs, valid=~same.all(1))
        if "itg" in wanted:
            found["loss_lm"] = self._language(text, cache, words)
        none = torch.zeros((), device=image.device)
        return {"loss": sum(found.values(), start=none), **found}

    def _contrast(self, queries: Tensor, text: TextBatch, words: Words) -> tuple[Tensor, Tensor]:
        """The similarities of pictures and texts: see `similarities`."""
        rows = self.Qformer.encode_text(text.ids, text.mask, cls_only=True, words=words)
        return self.similarities(self.project_image(queries), self.project_text(rows[:, 0]))

    @property
    def _shared(self) -> bool:
        """Processes exchange rows in training only, so that evaluation may split as it likes."""
        return self.training and distributed.world_size() > 1

    def similarities(self, image_feats: Tensor, text_feats: Tensor) -> tuple[Tensor, Tensor]:
        """[b, Q, E] and [b, E] -> image-to-text and text-to-image logits [b, N], in float32.

        As in the original, what a row is compared with gets no gradient from that row: it has its
        own in the other direction. So one process and many agree, and no gradient travels.
        """
        all_images, all_texts = image_feats.detach(), text_feats.detach()
        if self._shared:
            all_images = distributed.gather_no_grad(all_images)
            all_texts = distributed.gather_no_grad(all_texts)
        with torch.autocast(self.device.type, enabled=False):
            temperature = self.temp.clamp(*TEMPERATURE_RANGE)
            sim_i2t = losses.best_query_similarity(image_feats, all_texts)
            sim_t2i = losses.best_query_similarity(all_images, text_feats).T
            return sim_i2t / temperature, sim_t2i / temperature

    def _same_image(self, samples: dict[str, Any], b: int) -> Tensor:
        """[b, N]: this row and that column show the same image."""
        if "image_id" in samples:
            own = image_ids(samples["image_id"]).to(self.device)
        else:
            first = distributed.rank() * b if self._shared else 0
            own = torch.arange(first, first + b, device=self.device)
        everyone = distributed.gather_no_grad(own) if self._shared else own
        return own[:, None] == everyone[None, :]

    def _negatives(
        self, sim_i2t: Tensor, sim_t2i: Tensor, same: Tensor, given: tuple[Tensor, Tensor] | None
    ) -> Negatives:
        if given is not None:
            return Negatives(given[0].to(self.device), given[1].to(self.device))
        if self.training:
            generator = distributed.shared_generator(self.device)
        else:  # evaluation draws the same negatives whenever, and on whichever process, it happens
            generator = torch.Generator(self.device).manual_seed(0)
        first = distributed.rank() * len(same) if self._shared else 0
        sharpness = self.cfg.negative_sharpness
        image_for_text = losses.draw_negatives(sim_t2i, same, generator, first, sharpness)
        text_for_image = losses.draw_negatives(sim_i2t, same, generator, first, sharpness)
        return Negatives(image_for_text, text_for_image)

    def _matching(self, pairs: Tensor, valid: Tensor) -> Tensor:
        """The loss of what `_triplets` gives; `valid` [b]: the image has others to choose from."""
        logits = self.itm_head(pairs).mean(1)
        own, other_image = logits.split([2 * len(valid), len(valid)])
        matching, other_text = own.unflatten(0, (-1, 2)).unbind(1)
        logits = torch.cat([matching, other_image, other_text])
        total, count = losses.matching_loss(logits, valid)
        if self._shared:
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return total / count.clamp_min(1)

    def _triplets(
        self,
        text: TextBatch,
        image: Tensor,
        memory: ImageMemory,
        chosen: Negatives,
        words: Words,
    ) -> Tensor:
        """Query rows [3b, Q, d] of pairs.

        First (image, text) and (image, other text) of each image in turn, which so share its keys
        and values; then (other image, text) of each text.
        """
        own = torch.arange(len(image), device=image.device)
        ids, other_text = text.ids, chosen.text_for_image
        if self._shared:
            length = distributed.max_int(ids.shape[1])
            ids = F.pad(ids, (0, length - ids.shape[1]), value=self._pad)
            ids = torch.cat([ids, distributed.gather_no_grad(ids)[chosen.text_for_image]])
            other_text = own + len(own)
            # Image tokens travel; their keys and values, several times as large, are made here.
            other = self.memory_of(distributed.exchange_rows(image, chosen.image_for_text))
        else:
            other = memory.select(chosen.image_for_text)
        return self.Qformer.encode_pairs(
            self.query_tokens,
            ids,
            ids != self._pad,
            [memory.shown_to(2), other],
            text_index=torch.cat([torch.stack([own, other_text], 1).flatten(), own]),
            words=words,
        )

    def _language(self, text: TextBatch, cache: list[KeyValue], words: Words) -> Tensor:
        ids = self._begin(text.ids)
        hidden, _ = self.Qformer.decode(ids, text.mask, cache, words=words)
        # Only rows whose next token exists meet the large output matrix.
        rows = hidden.flatten(0, 1).index_select(0, text.lm_rows)
        logits = self.Qformer.lm_logits(rows, words)
        total = losses.language_loss(logits, text.lm_targets, self.cfg.label_smoothing)
        count = (text.lm_targets != losses.NO_TARGET).sum().float()
        if self._shared:
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return total / count.clamp_min(1)

    def _begin(self, ids: Tensor) -> Tensor:
        """The same ids with ``[DEC]`` as first token."""
        ids = ids.clone()
        ids[:, 0] = self.tokenizer.bos_token_id
        return ids

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)


def image_ids(ids: Any) -> Tensor:
    """Image ids as a LongTensor [b]; strings become stable numbers."""
    if isinstance(ids, Tensor):
        return ids.flatten()
    digests = (blake2b(str(i).encode(), digest_size=7).digest() for i in ids)
    return torch.tensor([int.from_bytes(d, "big") for d in digests])
