"""BLIP-2 stage 1: a Q-Former learns to read a frozen image encoder (contrast, matching, captions)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common import catalog, distributed
from lavislite.models.base import BaseModel, backbone_layer_ids
from lavislite.models.blip2 import losses
from lavislite.models.blip2.inference import InferenceMixin
from lavislite.models.blip2.layers import KeyValue, QFormerConfig
from lavislite.models.blip2.qformer import ImageMemory, QFormer
from lavislite.models.blip2.text import TextBatch, TextPacker, build_tokenizer, tokenizer_identity
from lavislite.models.vision.base import VisionConfig, build_vision, vision_fingerprint


@dataclass
class Blip2Config:
    """Stage 1 of BLIP-2; the defaults are the published model.

    tokenizer: "auto", "bert-base-uncased", "from_data", or a folder with vocab.txt.
    max_txt_len: tokens per caption in training, with ``[CLS]`` and ``[SEP]``.
    negative_sharpness: below 1, hard negatives are drawn less from the very hardest.
    pretrained: a run folder, checkpoint folder, file or URL to start from.
    """

    arch: str = "blip2"
    model_type: str | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    num_query_tokens: int = 32
    embed_dim: int = 256
    max_txt_len: int = 32
    tokenizer: str = "auto"
    label_smoothing: float = 0.1
    temperature: float = 0.07
    negative_sharpness: float = 1.0
    ln_vision_eps: float = 1e-5
    pretrained: str | None = None


class ImageEmbedding(NamedTuple):
    image_embeds: Tensor  # [B, T, C] tokens of the vision tower after ln_vision
    image_feats: Tensor  # [B, Q, E] of length 1


class Negatives(NamedTuple):
    image_for_text: Tensor  # [b] global row of an image that does not show what text b says
    text_for_image: Tensor  # [b]


@catalog.models.register("blip2")
@catalog.models.register("blip2_qformer")
@catalog.models.register("blip2_feature_extractor")
class Blip2Qformer(InferenceMixin, BaseModel):
    """Image encoder and Q-Former with the three objectives of stage 1.

    Args:
        vision: maps [B, 3, H, W] to [B, T, num_features]; frozen unless its parameters want gradients.
        tokenizer: from `build_tokenizer`.
    """

    Config: ClassVar[type[Any]] = Blip2Config
    TEMPERATURE_RANGE = (0.001, 0.5)

    def __init__(self, cfg: Blip2Config, *, vision: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.pack = TextPacker(tokenizer, cfg.max_txt_len)
        width = cfg.qformer.hidden_size
        # The order of parameters is the original's; optimizer groups follow it.
        self.query_tokens = nn.Parameter(torch.empty(1, cfg.num_query_tokens, width))
        # One dimension, because FSDP2 rejects parameters without any.
        self.temp = nn.Parameter(torch.full((1,), cfg.temperature))
        self.visual_encoder = vision
        self.ln_vision = nn.LayerNorm(_features(vision), eps=cfg.ln_vision_eps)
        self.Qformer = QFormer(
            cfg.qformer, vocab_size=len(tokenizer), image_width=_features(vision)
        )
        self.vision_proj = nn.Linear(width, cfg.embed_dim)
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.itm_head = nn.Linear(width, 2)
        nn.init.normal_(self.query_tokens, std=0.02)
        self.vision_is_frozen = not any(p.requires_grad for p in vision.parameters())
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> Blip2Qformer:
        """Build tower, tokenizer and Q-Former, then load `cfg.pretrained`.

        Args:
            parts: ``vision`` (a module), ``tokenizer``, or ``captions`` (an iterable of texts, read
                only if a vocabulary has to be made) replace what would be built.
        """
        from lavislite.models.blip2.weights import (
            initialise_qformer,
            load_pretrained,
            run_tokenizer,
        )

        vision = parts["vision"] if parts.get("vision") is not None else build_vision(cfg.vision)
        tokenizer = parts.get("tokenizer")
        if tokenizer is None:
            spec = run_tokenizer(cfg.pretrained) if cfg.tokenizer == "auto" else None
            tokenizer = build_tokenizer(spec or cfg.tokenizer, parts.get("captions"))
        model = cls(cfg, vision=vision, tokenizer=tokenizer)
        if cfg.pretrained is None:
            initialise_qformer(model.Qformer, cfg.qformer.init)
        else:
            load_pretrained(model, cfg.pretrained)
        return model

    # ---- what the base class asks for

    def frozen_modules(self) -> Sequence[nn.Module]:
        return (self.visual_encoder,) if self.vision_is_frozen else ()

    def identity(self) -> dict[str, str]:
        known = {"tokenizer": tokenizer_identity(self.tokenizer)}
        if self.vision_is_frozen:
            known["vision"] = f"{self.cfg.vision.name}@{vision_fingerprint(self.visual_encoder)}"
        return known

    def layer_ids(self) -> tuple[dict[str, int], int]:
        return backbone_layer_ids(self.visual_encoder, "visual_encoder.")

    # ---- training

    def forward(
        self, samples: dict[str, Any], negatives: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch; in training the processes share their rows as negatives.

        Args:
            samples: ``image`` [b, 3, H, W], ``text_input`` (b strings), and optionally ``image_id`` [b]:
                rows with the same id are not each other's negatives.
            negatives: (image row for each text, text row for each image), instead of drawing them.

        Returns:
            loss = loss_itc + loss_itm + loss_lm. With several processes, the *mean* over them is the
            loss of the whole batch.
        """
        text = self.pack(samples["text_input"]).to(self.device)
        image = self.encode_image(samples["image"])
        memory = self.Qformer.image_memory(image)
        queries, cache = self.Qformer.encode_queries(self.query_tokens, memory)
        image_feats = self.project_image(queries)
        text_feats = self.project_text(
            self.Qformer.encode_text(text.ids, text.mask, cls_only=True)[:, 0]
        )

        same = self._same_image(samples, len(image))
        sim_i2t, sim_t2i = self.similarities(image_feats, text_feats)
        loss_itc = losses.contrastive_loss(
            sim_i2t, sim_t2i, losses.contrastive_targets(same), self.cfg.label_smoothing
        )
        chosen = self._negatives(sim_i2t, sim_t2i, same, negatives)
        loss_itm = self._matching(text, image, memory, chosen, valid=~same.all(1))
        loss_lm = self._language(text, cache)
        return {
            "loss": loss_itc + loss_itm + loss_lm,
            "loss_itc": loss_itc,
            "loss_itm": loss_itm,
            "loss_lm": loss_lm,
        }

    @property
    def _shared(self) -> bool:
        """The processes exchange rows: in training only, so that evaluation may split as it likes."""
        return self.training and distributed.world_size() > 1

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens [B, T, C] after ln_vision, which is computed in float32."""
        images = images.to(self.device, non_blocking=True)
        if self.vision_is_frozen:
            with torch.no_grad():
                tokens = self.visual_encoder(images)
        else:
            tokens = self.visual_encoder(images)
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            norm = self.ln_vision
            x = F.layer_norm(
                tokens.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
        return x.to(dtype)

    def project_image(self, queries: Tensor) -> Tensor:
        """[B, Q, d] -> [B, Q, E] of length 1, in float32"""
        return F.normalize(self.vision_proj(queries).float(), dim=-1)

    def project_text(self, rows: Tensor) -> Tensor:
        """[..., d] -> [..., E] of length 1, in float32"""
        return F.normalize(self.text_proj(rows).float(), dim=-1)

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
            temperature = self.temp.clamp(*self.TEMPERATURE_RANGE)
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

    def _matching(
        self, text: TextBatch, image: Tensor, memory: ImageMemory, chosen: Negatives, valid: Tensor
    ) -> Tensor:
        hidden = self._triplets(text, image, memory, chosen)
        total, count = losses.matching_loss(self.itm_head(hidden).mean(1), valid)
        if self._shared:
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return total / count.clamp_min(1)

    def _triplets(
        self,
        text: TextBatch,
        image: Tensor,
        memory: ImageMemory,
        chosen: Negatives,
        queries_only: bool = True,
    ) -> Tensor:
        """Query rows [3b, Q, d] of (image, text), (other image, text), (image, other text)."""
        own = torch.arange(len(image), device=image.device)
        ids, other_image, other_text = text.ids, *chosen
        if self._shared:
            length = distributed.max_int(ids.shape[1])
            ids = F.pad(ids, (0, length - ids.shape[1]), value=self._pad)
            ids = torch.cat([ids, distributed.gather_no_grad(ids)[chosen.text_for_image]])
            # Image tokens travel; their keys and values, several times as large, are made here.
            foreign = distributed.exchange_rows(image, chosen.image_for_text)
            memory = ImageMemory.cat([memory, self.Qformer.image_memory(foreign)])
            other_image = other_text = own + len(own)
        return self.Qformer.encode_pairs(
            self.query_tokens,
            ids,
            ids != self._pad,
            memory.select(torch.cat([own, other_image, own])),
            text_index=torch.cat([own, own, other_text]),
            queries_only=queries_only,
        )

    def _language(self, text: TextBatch, cache: list[KeyValue]) -> Tensor:
        ids = self._begin(text.ids)
        hidden, _ = self.Qformer.decode(ids, text.mask, cache)
        # Only rows whose next token exists meet the large output matrix.
        rows = hidden.flatten(0, 1).index_select(0, text.lm_rows)
        logits = self.Qformer.lm_logits(rows)
        total = losses.language_loss(logits, text.lm_targets, self.cfg.label_smoothing)
        count = torch.full((), float(len(text.lm_rows)), device=total.device)
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
    from hashlib import blake2b

    digests = (blake2b(str(i).encode(), digest_size=7).digest() for i in ids)
    return torch.tensor([int.from_bytes(d, "big") for d in digests])


def _features(vision: nn.Module) -> int:
    return int(vision.num_features)  # type: ignore[arg-type]
