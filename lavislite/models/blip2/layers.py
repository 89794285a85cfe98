"""The Q-Former's building blocks: attention, and the layer that treats queries and text apart.

Shapes: B images, P image-text pairs, Q queries, L text tokens, T image tokens, C their width,
d width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import ConfigError
from lavislite.common.schema import check_bounds
from lavislite.models.blip2.dropout import Dropout, attention

KeyValue = tuple[Tensor, Tensor]
ImageRead = tuple[Tensor, Tensor, int]  # keys and values of images, and pairs that look at each


@dataclass
class QFormerConfig:
    """Size of the Q-Former; the defaults are BERT-base.

    initializer_range: standard deviation of random weights; BERT's suits a width of 768, narrow
        models want more.
    init: "auto" (bert-base-uncased when it can be had and fits, else random), "bert-base-uncased",
        a folder with BERT weights, or "none".
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int | None = None  # None: four times hidden_size
    cross_attention_freq: int = 2
    max_positions: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    init: str = "auto"

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        counts = (
            *("hidden_size", "num_layers", "num_heads", "intermediate_size"),
            *("cross_attention_freq", "max_positions"),
        )
        fractions = ("dropout", "attention_dropout")
        check_bounds("model.qformer", self, dict.fromkeys(counts, (1, None)))
        check_bounds("model.qformer", self, dict.fromkeys(fractions, (0, 1)))
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.qformer.num_heads: {self.num_heads} does not divide hidden_size "
                f"{self.hidden_size}."
            )


class Projections(nn.Module):
    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)


class Output(nn.Module):
    """LayerNorm(residual + dropout(dense(x)))."""

    def __init__(self, cfg: QFormerConfig, in_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, cfg.hidden_size)
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = Dropout(cfg.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and norm."""

    def __init__(self, cfg: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.self = Projections(cfg.hidden_size, source_width)
        self.output = Output(cfg, cfg.hidden_size)
        self.num_heads = cfg.num_heads
        self.dropout_p = cfg.attention_dropout

    def heads(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, h, n, d/h]"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, h, n, d/h] -> [B, n, d]; `mask` is True where a key may be seen."""
        p = self.dropout_p if self.training else 0.0
        x = attention(q, k, v, mask, p)
        return x.transpose(1, 2).flatten(2)


class Intermediate(nn.Module):
    def __init__(self, cfg: QFormerConfig, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden_size, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class QFormerLayer(nn.Module):
    """Self-attention over queries and text, cross-attention of the queries, one FFN for each.

    Args:
        image_width: width C of the image tokens; None for a layer that does not look at them.
        reads_text: False leaves out the FFN of the text.
    """

    def __init__(
        self, cfg: QFormerConfig, image_width: int | None, *, reads_text: bool = True
    ) -> None:
        super().__init__()
        inner = cfg.intermediate_size or 4 * cfg.hidden_size
        self.attention = Attention(cfg, cfg.hidden_size)
        self.crossattention = None if image_width is None else Attention(cfg, image_width)
        if reads_text:
            self.intermediate = Intermediate(cfg, inner)
            self.output = Output(cfg, inner)
        self.intermediate_query = Intermediate(cfg, inner)
        self.output_query = Output(cfg, inner)

    def image_keys_values(self, image: Tensor, norm: nn.LayerNorm | None = None) -> KeyValue:
        """[B, T, C] -> keys and values, each [B, h, T, d/h]

        Args:
            norm: whose scale and shift the image tokens still lack: they go into the weights here,
                and learn from the gradient of those instead of one for each token of each image.
        """
        assert self.crossattention is not None
        look = self.crossattention
        if norm is None:
            return look.heads(look.self.key(image)), look.heads(look.self.value(image))
        key, value = (_after(norm, linear) for linear in (look.self.key, look.self.value))
        return look.heads(F.linear(image, *key)), look.heads(F.linear(image, *value))

    def forward(
        self,
        queries: Tensor | None,
        text: Tensor | None,
        *,
        image: Sequence[ImageRead] | None = None,
        past: KeyValue | None = None,
        mask: Tensor | None = None,
        text_rows: int | None = None,
        fan_out: Tensor | None = None,
        probe: list[Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, KeyValue]:
        """One layer for queries [B, Q, d], text [B, L, d], or both as a sequence [queries | text].

        Args:
            image: this layer's keys and values of images, at which the queries look: the first
                group is for the first pairs, and so on.
            past: keys and values of earlier rows, which all rows may see.
            mask: broadcasts to [B, h, rows, keys]; True where a key may be seen.
            text_rows: compute only so many leading text rows; all rows remain visible.
            fan_out: [P] which of the B rows each pair continues. Until a layer looks at the image,
                pairs with the same text are the same, so the first layer need not repeat them.
            probe: receives the cross-attention probabilities [B, h, Q, T].

        Queries may have batch size 1 (the same for all images) until they first meet text or image.
        """
        q, k, v, kept_queries, kept_text = self._project(queries, text, text_rows)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        context = self.attention.attend(q, k, v, mask)
        residual = _join(kept_queries, kept_text)
        rows = self.attention.output(context, residual)
        own, written = _part(rows, kept_queries, kept_text)
        if own is not None:
            queries = self._look(_pick(own, fan_out), image, probe)
            queries = self.output_query(self.intermediate_query(queries), queries)
        if written is not None:
            text = _pick(self.output(self.intermediate(written), written), fan_out)
        return queries, None if kept_text is None else text, (k, v)

    def _project(
        self, queries: Tensor | None, text: Tensor | None, text_rows: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Queries, keys and values of the self-attention, and the rows whose output is wanted."""
        attention, project = self.attention, self.attention.self
        kept = text if text is None or text_rows is None else text[:, :text_rows]
        kept = None if text_rows == 0 else kept
        if queries is None or text is None or queries.shape[0] == text.shape[0]:
            rows = _join(queries, text)
            k, v = attention.heads(project.key(rows)), attention.heads(project.value(rows))
            wanted = rows if kept is text else _join(queries, kept)
            return attention.heads(project.query(wanted)), k, v, queries, kept
        # The first layer: the same queries for all texts, so they are projected once.
        pairs = text.shape[0]

        def both(linear: nn.Linear) -> Tensor:
            shared = attention.heads(linear(queries)).expand(pairs, -1, -1, -1)
            return torch.cat([shared, attention.heads(linear(text))], 2)

        q, k, v = both(project.query), both(project.key), both(project.value)
        if kept is not text:
            q = q[:, :, : queries.shape[1] + (text_rows or 0)]
        return q, k, v, queries, kept

    def _look(
        self, queries: Tensor, image: Sequence[ImageRead] | None, probe: list[Tensor] | None
    ) -> Tensor:
        if image is None or self.crossattention is None:
            return queries
        look = self.crossattention
        asked = look.self.query(queries)
        if len(image) == 1:
            return look.output(_look_at(look, asked, image[0], probe), queries)
        groups = asked.split([len(k) * shown for k, _, shown in image])
        read = [_look_at(look, *each, probe) for each in zip(groups, image, strict=True)]
        return look.output(torch.cat(read), queries)


def _look_at(
    look: Attention, asked: Tensor, image: ImageRead, probe: list[Tensor] | None
) -> Tensor:
    """What pairs [P, Q, d] (or [1, Q, d], all the same) see in their images: [P, Q, d].

    All pairs of an image make one long row of queries: its keys and values are read once.
    """
    k, v, shown = image
    q = look.heads(asked.reshape(-1, shown * asked.shape[1], asked.shape[2]))
    q = q.expand(k.shape[0], -1, -1, -1)
    if probe is not None:
        probe.append((q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1))
    return look.attend(q, k, v).reshape(-1, *asked.shape[1:])


def _after(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear layer in place of scale, shift and `linear`."""
    # A product and a sum, which unlike a matrix product stay in float32 under autocast.
    shift = (linear.weight * norm.bias).sum(1)
    return linear.weight * norm.weight, linear.bias + shift


def _join(queries: Tensor | None, text: Tensor | None) -> Tensor:
    """[queries | text] along the sequence, where either may be absent."""
    if queries is None or text is None:
        rows = text if queries is None else queries
        assert rows is not None
        return rows
    return torch.cat([queries.expand(text.shape[0], -1, -1), text], 1)


def _part(
    rows: Tensor, queries: Tensor | None, text: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The opposite of `_join`."""
    if queries is None or text is None:
        return (None, rows) if queries is None else (rows, None)
    # Not two slices: each would bring a gradient of the whole size, and their sum.
    own, written = rows.split([queries.shape[1], text.shape[1]], 1)
    return own, written


def _pick(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else take_rows(rows, index)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [n] of x [B, ...]: [n, ...]; their gradients are added up row by row."""
    return _TakeRows.apply(x, index)


class _TakeRows(torch.autograd.Function):
    """``x.index_select(0, index)``, whose own gradient is added up number by number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.rows, *grad.shape[1:])
        return total.index_add_(0, index, grad), None
