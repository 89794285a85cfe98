"""The playground's language models: a small OPT and a small T5, and their tokenizer.

They are ordinary models of the transformers library in an ordinary folder. Only their first weights
are chosen with care: attention starts with heads that look a few tokens back and heads that match
equal tokens ("mimetic" initialisation, Trockman and Kolter 2023), because at this size looking up
"which colour has the circle" otherwise takes many times as long to learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import UserError
from lavislite.common.io import cache_dir
from lavislite.models.language.base import LanguageConfig

FAMILIES = ("opt", "t5")
END = "\n"  # of a text of the small OPT, as BLIP-2 ends OPT's
PAD, BEGIN = "<pad>", "</s>"  # BEGIN is the T5's end
# How far back the heads of the first layer look; negative is ahead, which only an encoder can.
LOOKS = {"opt": (1, 2, 3, 4), "t5": (1, -1, -2, 3)}
# What the heads of the second layer begin by matching: what is here (0 the token itself, k the
# token k back) with what is there.
MATCHES = {
    "opt": ((0, 1), (3, 0), (4, 0), (4, 1)),
    "t5": ((-1, 0), (-2, 0), (3, 0), (0, 0)),
}


def playground_folder(family: str) -> Path:
    """Where the trained model of the family is kept."""
    return cache_dir() / "playground" / "language" / family


@catalog.language_models.register("playground_opt")
def playground_opt(cfg: LanguageConfig) -> nn.Module:
    """The playground's decoder-only model."""
    return _load("opt", replace(cfg, end=cfg.end or END))


@catalog.language_models.register("playground_t5")
def playground_t5(cfg: LanguageConfig) -> nn.Module:
    """The playground's encoder-decoder model."""
    return _load("t5", cfg)


def _load(family: str, cfg: LanguageConfig) -> nn.Module:
    folder = playground_folder(family)
    if not (folder / "config.json").exists():
        raise UserError(
            f"model.language: the weights of 'playground_{family}' are not in {folder}. Make them "
            f"with\n  python train.py --cfg-path projects/blip2/playground_{family}.yaml"
        )
    build = catalog.language_models.get("causal" if family == "opt" else "seq2seq")
    return build(replace(cfg, name=str(folder)))


def make_tokenizer(texts: Iterable[str], family: str, size: int) -> Any:
    """A byte-level BPE tokenizer that knows the words of `texts`; each word starts with a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=[PAD, BEGIN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([END])
    around = f"{BEGIN} $A" if family == "opt" else f"$A {BEGIN}"
    core.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(BEGIN, core.token_to_id(BEGIN))]
    )
    ends = {"bos_token": BEGIN} if family == "opt" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=BEGIN, clean_up_tokenization_spaces=False,
        **ends,
    )  # fmt: skip


def make_model(family: str, *, width: int, layers: int, heads: int, size: int) -> Any:
    """A fresh model of the library, its `size` token embeddings included."""
    from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

    if family == "opt":
        model: Any = OPTForCausalLM(
            OPTConfig(
                vocab_size=size, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
                num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=254,
                dropout=0.0, attention_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=1,
            )
        )  # fmt: skip
        _start_opt(model, width, width // heads)
        return model
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=size, d_model=width, d_kv=width // heads, d_ff=2 * width, num_layers=layers,
            num_decoder_layers=2, num_heads=heads, dropout_rate=0.0, feed_forward_proj="gated-gelu",
            relative_attention_max_distance=64, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    _start_t5(model, width, width // heads)
    return model


@torch.no_grad()
def _start_t5(model: Any, width: int, head: int) -> None:
    """Half of the encoder's heads look at neighbours, by the bias that all layers share."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ".layer." in name and "relative" not in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(".q.weight"):
                weight.mul_(head**-0.5)  # T5 does not divide its scores
            if name.endswith((".o.weight", ".wo.weight")):
                weight.mul_(0.5)
    channels = _Channels(width, head, LOOKS["t5"])
    channels.start_tokens(model.shared.weight)
    first, second = (block.layer[0].SelfAttention for block in model.encoder.block[:2])
    near = first.relative_attention_bias.weight  # [buckets, heads]; k tokens back, 16 + k ahead
    nn.init.normal_(near, std=0.1)
    for place, distance in enumerate(LOOKS["t5"]):
        near[distance if distance > 0 else 16 - distance, place] = 6.0
        _start_copy(first.v, first.o, place, channels, distance)
    for place, (here, there) in enumerate(MATCHES["t5"], start=len(LOOKS["t5"])):
        query, key = 0.75 * channels.reads(here), 0.75 * channels.reads(there)
        _start_head(second.q, second.k, place, query=query, key=key)


@torch.no_grad()
def _start_opt(model: Any, width: int, head: int) -> None:
    """Positions, tokens and "what the neighbours are" live in channels of their own at first."""
    decoder = model.model.decoder
    for name, weight in decoder.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("out_proj.weight", "fc2.weight")):
                weight.mul_(0.5 / math.sqrt(len(decoder.layers)))
    channels = _Channels(width, head, LOOKS["opt"], waves=3 * width // 32)
    channels.start_tokens(decoder.embed_tokens.weight)
    decoder.embed_positions.weight.copy_(channels.waves(len(decoder.embed_positions.weight)))
    first, second = (layer.self_attn for layer in decoder.layers[:2])
    for place, distance in enumerate(LOOKS["opt"]):
        query, key = channels.looks_back(distance)
        _start_head(first.q_proj, first.k_proj, place, query=1.22 * query, key=1.22 * key)
        _start_copy(first.v_proj, first.out_proj, place, channels, distance)
    for place, (here, there) in enumerate(MATCHES["opt"]):
        query, key = 1.73 * channels.reads(here), 1.73 * channels.reads(there)
        _start_head(second.q_proj, second.k_proj, place, query=query, key=key)


def _start_head(queries: Any, keys: Any, place: int, *, query: Tensor, key: Tensor) -> None:
    """Let the head at `place` begin by comparing what `query` and `key` read."""
    rows = slice(place * len(query), (place + 1) * len(query))
    for projection, start in ((queries, query), (keys, key)):
        projection.weight[rows] = 0.2 * projection.weight[rows] + start


def _start_copy(values: Any, out: Any, place: int, channels: _Channels, distance: int) -> None:
    """Let the head at `place` begin by copying tokens to the channels of `distance`."""
    rows = slice(place * channels.head, (place + 1) * channels.head)
    values.weight[rows] = 0.2 * values.weight[rows] + channels.reads(0)
    out.weight[:, rows] = 0.2 * out.weight[:, rows] + channels.reads(distance).T


class _Channels:
    """Which channels of the residual stream start with what, as [head, width] projections."""

    def __init__(self, width: int, head: int, looks: tuple[int, ...], waves: int = 0) -> None:
        self.width, self.head, self.looks, self.positions = width, head, looks, 2 * waves
        self.tokens = (width - self.positions) // 2 if not waves else 5 * width // 16
        self.content = min((width - self.positions - self.tokens) // len(looks), head)
        generator = torch.Generator().manual_seed(1)
        spread = 0.9 * torch.rand(waves, generator=generator)
        self.frequency = (spread + torch.arange(waves)) * math.pi / max(waves, 1)
        mixed = torch.linalg.qr(torch.randn(self.tokens, self.tokens, generator=generator))[0]
        self.summary = mixed[: self.content]

    def start_tokens(self, table: Tensor) -> None:
        """Fill the embeddings [vocabulary, width]: the token's own channels, little elsewhere."""
        nn.init.normal_(table)
        table[:, : self.positions] *= 0.1
        table[:, self.positions + self.tokens :] *= 0.1

    def waves(self, length: int) -> Tensor:
        """[length, width] sines and cosines of the position."""
        angle = torch.arange(length)[:, None] * self.frequency
        table = torch.zeros(length, self.width)
        pairs = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        table[:, : self.positions] = math.sqrt(2) * pairs
        return table

    def looks_back(self, distance: int) -> tuple[Tensor, Tensor]:
        """Query and key whose product is largest `distance` positions back."""
        query, key = (torch.zeros(self.head, self.width) for _ in range(2))
        for k in range(min(len(self.frequency), self.head // 2)):
            turn = float(self.frequency[k]) * distance
            pair = slice(2 * k, 2 * k + 2)
            key[pair, pair] = torch.eye(2)
            query[pair, pair] = torch.tensor(
                [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
            )
        return query, key

    def reads(self, distance: int) -> Tensor:
        """Reads a summary of the token here (0), or `distance` back; transposed, writes it."""
        read, tokens = torch.zeros(self.head, self.width), self.positions + self.tokens
        if distance == 0:
            read[: self.content, self.positions : tokens] = self.summary
        else:
            start = tokens + self.looks.index(distance) * self.content
            read[: self.content, start : start + self.content] = torch.eye(self.content)
        return read
