"""The Querying Transformer: BERT whose query rows also look at an image (BLIP-2, section 3.1).

Module names are those of the original, so its checkpoints load by name. Shapes:
B images, P image-text pairs, Q queries, L text tokens, T image tokens, C their width, d width,
h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.recompute import recomputed
from lavislite.models.blip2.dropout import Dropout
from lavislite.models.blip2.layers import (
    ImageRead,
    KeyValue,
    QFormerConfig,
    QFormerLayer,
    take_rows,
)
from lavislite.models.blip2.words import Words

LayerOutput = tuple[Tensor | None, Tensor | None, KeyValue]


@dataclass
class ImageMemory:
    """Keys and values of B images for each layer that looks at them: each [B, h, T, d/h].

    shown: so many pairs in a row look at the same image, which is not copied for them.
    """

    keys: list[Tensor]
    values: list[Tensor]
    shown: int = 1

    def __len__(self) -> int:
        return self.keys[0].shape[0]

    def select(self, index: Tensor) -> ImageMemory:
        """The images `index` [P]; an image may occur many times."""
        keys, values = ([take_rows(x, index) for x in part] for part in (self.keys, self.values))
        return ImageMemory(keys, values)

    def shown_to(self, pairs: int) -> ImageMemory:
        """The same images, each for `pairs` pairs in a row."""
        return ImageMemory(self.keys, self.values, pairs)

    @staticmethod
    def cat(memories: Sequence[ImageMemory]) -> ImageMemory:
        """One memory with the images of all `memories`."""
        return ImageMemory(
            [torch.cat(keys) for keys in zip(*(m.keys for m in memories), strict=True)],
            [torch.cat(values) for values in zip(*(m.values for m in memories), strict=True)],
        )


class Embeddings(nn.Module):
    def __init__(self, cfg: QFormerConfig, vocab_size: int | None) -> None:
        super().__init__()
        if vocab_size is not None:
            self.word_embeddings = nn.Embedding(vocab_size, cfg.hidden_size)
            self.position_embeddings = nn.Embedding(cfg.max_positions, cfg.hidden_size)
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = Dropout(cfg.dropout)

    def text(self, ids: Tensor, words: Words | None = None, offset: int = 0) -> Tensor:
        """[B, L] token ids, the first of which has position `offset` -> [B, L, d]"""
        words = words or Words(self.word_embeddings.weight)
        positions = self.position_embeddings.weight[offset : offset + ids.shape[1]]
        return self.dropout(self.LayerNorm(words.look_up(ids) + positions))

    def queries(self, query_tokens: Tensor, batch: int) -> Tensor:
        """[1, Q, d] -> [batch, Q, d], or [1, Q, d] when dropout does not tell the images apart."""
        if self.training and self.dropout.p > 0:
            query_tokens = query_tokens.expand(batch, -1, -1)
        return self.dropout(self.LayerNorm(query_tokens))


class Transform(nn.Module):
    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Language model head; its output matrix is the word embedding."""

    def __init__(self, cfg: QFormerConfig, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.transform = Transform(cfg)


class Encoder(nn.Module):
    """Args: text_layers: so many first layers have an FFN for the text."""

    def __init__(self, cfg: QFormerConfig, image_width: int, *, text_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            QFormerLayer(
                cfg,
                image_width if i % cfg.cross_attention_freq == 0 else None,
                reads_text=i < text_layers,
            )
            for i in range(cfg.num_layers)
        )


class Bert(nn.Module):
    def __init__(
        self, cfg: QFormerConfig, vocab_size: int | None, image_width: int, text_layers: int
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(cfg, vocab_size)
        self.encoder = Encoder(cfg, image_width, text_layers=text_layers)


class Head(nn.Module):
    def __init__(self, cfg: QFormerConfig, vocab_size: int) -> None:
        super().__init__()
        self.predictions = Predictions(cfg, vocab_size)


class QFormer(nn.Module):
    """Queries and text through one BERT, with the masks of the three objectives of stage 1.

    Args:
        vocab_size: number of tokens, including ``[DEC]``. None makes a Q-Former of queries alone,
            without text embeddings, the FFN of the text, and LM head: only `image_memory` and
            `encode_queries` work.
        image_width: width C of the image tokens.
        queries_only: text is read, but only query rows come out: no LM head, and in the last layer
            no FFN for the text, as nothing would ever train them. Of what concerns text,
            `encode_pairs` with its own `queries_only` works.

    Raises:
        ConfigError: a size that cannot be; see `QFormerConfig.check`.
    """

    def __init__(
        self,
        cfg: QFormerConfig,
        *,
        vocab_size: int | None,
        image_width: int,
        queries_only: bool = False,
    ) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.recompute: str | None = None  # or "recompute", "offload": see common/recompute.py
        self.text_layers = 0 if vocab_size is None else cfg.num_layers - queries_only
        self.bert = Bert(cfg, vocab_size, image_width, self.text_layers)
        if vocab_size is not None and not queries_only:
            self.cls = Head(cfg, vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """BERT's initial values; as after loading BERT, the query FFN equals the text FFN."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.cfg.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.copy_text_ffn()

    @torch.no_grad()
    def copy_text_ffn(self) -> None:
        """Start the FFN of the queries from the FFN of the text, where there is one."""
        for layer in self.layers[: self.text_layers]:
            layer.intermediate_query.load_state_dict(layer.intermediate.state_dict())
            layer.output_query.load_state_dict(layer.output.state_dict())

    @property
    def layers(self) -> Sequence[QFormerLayer]:
        return self.bert.encoder.layer  # type: ignore[return-value]

    def words(self) -> Words:
        """For `encode_text`, `encode_pairs`, `decode` and at last `lm_logits` of one training step,
        which then have one gradient of the vocabulary's size together instead of one each."""
        return Words(self.bert.embeddings.word_embeddings.weight)

    # ---- the four ways through

    def image_memory(self, image: Tensor, norm: nn.LayerNorm | None = None) -> ImageMemory:
        """[B, T, C] -> keys and values for every layer that looks at the image.

        Args:
            norm: whose scale and shift the image tokens still lack.
        """
        readers = [layer for layer in self.layers if layer.crossattention is not None]
        pairs = [layer.image_keys_values(image, norm) for layer in readers]
        return ImageMemory([k for k, _ in pairs], [v for _, v in pairs])

    def encode_queries(
        self, query_tokens: Tensor, memory: ImageMemory, probe: list[Tensor] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Queries and image, no text: [B, Q, d] and per layer keys and values [B, h, Q, d/h]."""
        batch = len(memory)
        hidden: Tensor | None = self.bert.embeddings.queries(query_tokens, batch)
        cache = []
        for layer, image in zip(self.layers, self._images([memory]), strict=True):
            hidden, _, (k, v) = self._run(layer, hidden, None, image=image, probe=probe)
            cache.append((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)))
        assert hidden is not None
        return hidden, cache

    def encode_text(
        self, ids: Tensor, mask: Tensor, cls_only: bool = False, words: Words | None = None
    ) -> Tensor:
        """Text alone, bi-directional: [B, L, d], or with `cls_only` [B, 1, d]."""
        hidden: Tensor | None = self.bert.embeddings.text(ids, words)
        seen = mask.bool()[:, None, None, :]
        for layer in self.layers:
            rows = 1 if cls_only and layer is self.layers[-1] else None
            _, hidden, _ = self._run(layer, None, hidden, mask=seen, text_rows=rows)
        assert hidden is not None
        return hidden

    def encode_pairs(
        self,
        query_tokens: Tensor,
        ids: Tensor,
        mask: Tensor,
        memory: ImageMemory | Sequence[ImageMemory],
        *,
        text_index: Tensor | None = None,
        queries_only: bool = True,
        probe: list[Tensor] | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Pairs of image and text, bi-directional: [P, Q, d], or all rows [P, Q + L, d].

        Args:
            ids, mask: [B, L]
            memory: of P images, or of fewer that several pairs in a row look at (`shown_to`);
                several memories are for one group of pairs after the other.
            text_index: [P] the text of each pair; None when pair p has text p.
        """
        queries: Tensor | None = self.bert.embeddings.queries(query_tokens, len(ids))
        assert queries is not None
        text: Tensor | None = self.bert.embeddings.text(ids, words)
        seen = F.pad(mask.bool(), (queries.shape[1], 0), value=True)[:, None, None, :]
        fan_out = text_index
        memories = [memory] if isinstance(memory, ImageMemory) else memory
        for layer, image in zip(self.layers, self._images(memories), strict=True):
            rows = 0 if queries_only and layer is self.layers[-1] else None
            pairs = {"image": image, "mask": seen, "text_rows": rows, "fan_out": fan_out}
            queries, text, _ = self._run(layer, queries, text, **pairs, probe=probe)
            if fan_out is not None:
                seen, fan_out = seen.index_select(0, fan_out), None
        assert queries is not None
        return queries if text is None else torch.cat([queries, text], 1)

    def decode(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: list[KeyValue],
        offset: int = 0,
        words: Words | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Text that sees the cached rows and, causally, itself: [B, L, d] and the longer cache.

        Args:
            ids, mask: [B, L]; `mask` marks real tokens.
            cache: per layer keys and values of the queries and of `offset` earlier tokens.
        """
        length, seen_before = ids.shape[1], cache[0][0].shape[2]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        seen = F.pad(causal & mask.bool()[:, None, :], (seen_before, 0), value=True)[:, None]
        hidden: Tensor | None = self.bert.embeddings.text(ids, words, offset)
        longer = []
        for layer, past in zip(self.layers, cache, strict=True):
            _, hidden, present = self._run(layer, None, hidden, past=past, mask=seen)
            longer.append(present)
        assert hidden is not None
        return hidden, longer

    def lm_logits(self, rows: Tensor, words: Words | None = None) -> Tensor:
        """[n, d] -> scores of the next token [n, vocabulary]"""
        head, words = self.cls.predictions, words or self.words()
        return F.linear(head.transform(rows), words.matrix, head.bias)

    def _run(self, layer: QFormerLayer, *rows: Tensor | None, **context: Any) -> LayerOutput:
        """One layer; under activation checkpointing its inside is not kept."""
        if self.recompute is None:
            return layer(*rows, **context)
        return recomputed(layer, *rows, offload=self.recompute == "offload", **context)

    def _images(self, memories: Sequence[ImageMemory]) -> list[list[ImageRead] | None]:
        """One entry per layer: the keys and values of the images it looks at, or None."""
        pairs = iter(
            [(k, v, m.shown) for k, v, m in zip(keys, values, memories, strict=True)]
            for keys, values in zip(
                zip(*(m.keys for m in memories), strict=True),
                zip(*(m.values for m in memories), strict=True),
                strict=True,
            )
        )
        return [None if y.crossattention is None else next(pairs) for y in self.layers]
