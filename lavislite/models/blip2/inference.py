"""What a stage-1 model does besides training: features, scores, captions, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lavislite.common.errors import UserError
from lavislite.common.registry import did_you_mean
from lavislite.models.blip2.base import Blip2Base, ImageEmbedding
from lavislite.models.blip2.calls import public_call, require_keys
from lavislite.models.blip2.gallery import TextGallery, memories_of
from lavislite.models.blip2.qformer import ImageMemory
from lavislite.models.blip2.text import TextBatch
from lavislite.models.decoding import Decoding, beam_search, sample


@dataclass
class BlipFeatures:
    """Result of `extract_features`; the fields a mode does not fill are None."""

    image_embeds: Tensor | None = None  # [B, Q, d]
    image_embeds_proj: Tensor | None = None  # [B, Q, E] of length 1
    text_embeds: Tensor | None = None  # [B, L, d]
    text_embeds_proj: Tensor | None = None  # [B, L, E] of length 1
    multimodal_embeds: Tensor | None = None  # [B, Q, d]


class TokenizedText(Protocol):
    input_ids: Tensor
    attention_mask: Tensor


class Blip2Inference(Blip2Base):
    """What no training step calls."""

    # ---- retrieval

    def embed_image(self, image: Tensor) -> ImageEmbedding:
        """[B, 3, H, W] -> image tokens [B, T, C] and query features [B, Q, E] of length 1."""
        tokens = self.encode_image(image)
        queries, _ = self.read_image(tokens)
        return ImageEmbedding(tokens, self.project_image(queries))

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> [N, E] of length 1."""
        text = self.pack(texts).to(self.device)
        rows = self.Qformer.encode_text(text.ids, text.mask, cls_only=True)
        return self.project_text(rows[:, 0])

    def image_memory(self, image_embeds: Tensor) -> ImageMemory:
        """[B, T, C] -> what the Q-Former reads of the images, made once for many pairs."""
        return self.Qformer.image_memory(image_embeds)

    def score_itm(self, memory: ImageMemory, image_index: Tensor, texts: Sequence[str]) -> Tensor:
        """Logit of "text p describes image ``image_index[p]``", mean over the queries: [P]"""
        text = self.pack(texts).to(self.device)
        return self._itm(memory.select(image_index), text.ids, text.mask)[:, 1]

    def text_gallery(self, texts: Sequence[str]) -> TextGallery:
        """Texts for `score_gallery`, tokenized once."""
        return TextGallery.of(self.pack(texts), self.device)

    def score_gallery(
        self, memory: ImageMemory, image_index: Tensor, gallery: TextGallery, text_index: Tensor
    ) -> Tensor:
        """`score_itm` of pairs of image ``image_index[p]`` and text ``text_index[p]``: [P]

        Both are on the CPU. Pairs of one image in a row, and of one text anywhere, are cheapest.
        """
        texts, place = text_index.unique(return_inverse=True)
        ids, mask = gallery.rows(texts)
        hidden = self.Qformer.encode_pairs(
            self.query_tokens,
            *(ids, mask, memories_of(memory, image_index, self.device)),
            text_index=place.to(self.device, non_blocking=True),
        )
        return self.itm_head(hidden).float().mean(1)[:, 1]

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """`score_itm` for image tokens [P, T, C] and token ids with their mask [P, L]: [P]"""
        return self._itm(self.image_memory(image_inputs), text_ids, text_atts)[:, 1]

    def pack_pairs(self, samples: dict[str, Any], max_length: int | None = None) -> TextBatch:
        """The texts of ``samples["text_input"]``, one for each image.

        Raises:
            UserError: there are more or fewer texts than images.
        """
        text = self.pack(samples["text_input"], max_length).to(self.device)
        if len(text.ids) != len(samples["image"]):
            raise UserError(
                f"Expected one text per image, got {len(text.ids)} for {len(samples['image'])}."
            )
        return text

    def _itm(self, memory: ImageMemory, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.Qformer.encode_pairs(self.query_tokens, ids, mask, memory)
        return self.itm_head(hidden).float().mean(1)

    # ---- features

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> query rows [B, Q, d] and image tokens [B, T, C]."""
        tokens = self.encode_image(image)
        return self.read_image(tokens)[0], tokens

    def forward_text(self, text_tokens: TokenizedText) -> Tensor:
        """Tokenized texts -> [B, d], the row of ``[CLS]``."""
        ids, mask = (
            text_tokens.input_ids.to(self.device),
            text_tokens.attention_mask.to(self.device),
        )
        return self.Qformer.encode_text(ids, mask, cls_only=True)[:, 0]

    @torch.no_grad()
    def extract_features(self, samples: dict[str, Any], mode: str = "multimodal") -> BlipFeatures:
        """Features of ``samples["image"]``, ``samples["text_input"]`` (not truncated), or pairs.

        Args:
            mode: "image", "text" or "multimodal".

        Raises:
            UserError: another mode, or the samples lack what it needs.
        """
        if mode not in _NEEDED:
            near = did_you_mean(mode, _NEEDED)
            raise UserError(
                f"extract_features: unknown mode '{mode}'.{near} Known: image, text, multimodal."
            )
        require_keys(samples, _NEEDED[mode], f"extract_features with mode '{mode}'")
        if mode == "image":
            queries, _ = self.forward_image(samples["image"])
            return BlipFeatures(image_embeds=queries, image_embeds_proj=self.project_image(queries))
        longest = self.cfg.qformer.max_positions
        if mode == "text":
            text = self.pack(samples["text_input"], longest).to(self.device)
            rows = self.Qformer.encode_text(text.ids, text.mask)
            return BlipFeatures(text_embeds=rows, text_embeds_proj=self.project_text(rows))
        memory = self.image_memory(self.encode_image(samples["image"]))
        text = self.pack_pairs(samples, longest)
        pairs = self.Qformer.encode_pairs(self.query_tokens, text.ids, text.mask, memory)
        return BlipFeatures(multimodal_embeds=pairs)

    @torch.no_grad()
    def cross_attention(self, samples: dict[str, Any]) -> Tensor:
        """Where the queries look: probabilities [B, layers that look, heads, Q, T].

        With ``text_input`` the queries read the text too, otherwise the image alone.
        """
        probe: list[Tensor] = []
        memory = self.image_memory(self.encode_image(samples["image"]))
        if "text_input" in samples:
            text = self.pack_pairs(samples)
            self.Qformer.encode_pairs(self.query_tokens, text.ids, text.mask, memory, probe=probe)
        else:
            self.Qformer.encode_queries(self.query_tokens, memory, probe=probe)
        return torch.stack(probe, 1)

    # ---- captions

    @public_call
    @torch.no_grad()
    def generate(
        self,
        samples: dict[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        temperature: float = 1.0,
    ) -> list[str]:
        """Captions of ``samples["image"]`` by the Q-Former alone (no language model).

        Lengths are in tokens and count the first and the last. `length_penalty` applies to beam
        search, `top_p` and `temperature` to sampling.
        """
        require_keys(samples, ("image",), "generate")
        how = Decoding(
            begin=self.tokenizer.bos_token_id,
            end=self.tokenizer.sep_token_id,
            pad=self.tokenizer.pad_token_id,
            max_length=max_length,
            min_length=min_length,
            num_beams=1 if use_nucleus_sampling else num_beams,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            temperature=temperature,
        )
        ids = self.generate_ids(samples["image"], how, use_nucleus_sampling)
        captions = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [caption.strip() for caption in captions]

    @torch.no_grad()
    def generate_ids(self, image: Tensor, how: Decoding, nucleus: bool = False) -> Tensor:
        """[B, 3, H, W] -> token ids [B, n], from ``[DEC]`` on."""
        positions = self.cfg.qformer.max_positions
        if not 1 <= how.max_length <= positions or how.num_beams < 1:
            raise UserError(
                f"generate: expected num_beams >= 1 and max_length from 1 to {positions}, "
                f"got {how.num_beams} and {how.max_length}."
            )
        queries = self.read_image(self.encode_image(image))[1]
        cache = list(queries)  # read once for all beams, which branch after the first token

        def step(tokens: Tensor, parents: Tensor | None) -> Tensor:
            nonlocal cache
            if parents is not None:
                cache = [(k.index_select(0, parents), v.index_select(0, parents)) for k, v in cache]
            last = tokens[:, -1:]
            hidden, cache = self.Qformer.decode(
                last, torch.ones_like(last), cache, offset=tokens.shape[1] - 1
            )
            return self.Qformer.lm_logits(hidden[:, -1])

        decode = sample if nucleus else beam_search
        return decode(step, len(image), how, self.device)


_NEEDED = {"image": ("image",), "text": ("text_input",), "multimodal": ("image", "text_input")}
