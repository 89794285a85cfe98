"""Decoding one token at a time: beam search, and sampling from the most likely tokens.

Both ask a `Step` for scores and know nothing else of the model. Lengths count the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (tokens so far [N, n], for each row the row of the previous call it continues, or None at first)
# -> scores of the next token [N, vocabulary]
Step = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Decoding:
    """How to decode. `max_length` and `min_length` count the first and the last token.

    num_return: so many of the best beams of each row are the result.
    """

    begin: int
    end: int
    pad: int
    max_length: int = 30
    min_length: int = 10
    num_beams: int = 3
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    top_p: float = 0.9
    temperature: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return: int = 1


@torch.no_grad()
def beam_search(step: Step, batch: int, how: Decoding, device: torch.device) -> Tensor:
    """The best sequences of each of `batch` rows: [batch * num_return, length], ended and padded.

    A hypothesis scores sum(log p) / length ** length_penalty, its end not counted. A row is done
    when no running beam can still beat the worst of its `num_beams` hypotheses. One beam is greedy.
    """
    k = how.num_beams
    beams = torch.full((batch, k, 1), how.begin, device=device)
    scores = torch.full((batch, k), -1e9, device=device)
    scores[:, 0] = 0.0  # all beams are equal at first: only one may branch
    best = Hypotheses.empty(batch, k, how, device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    parents: Tensor | None = None
    for length in range(1, how.max_length):
        tokens = beams.flatten(0, 1)
        logp = _adjust(step(tokens, parents).float().log_softmax(-1), tokens, how)
        total = logp.unflatten(0, (batch, k)) + scores[..., None]
        candidates, flat = total.flatten(1).topk(2 * k)
        origin, token = flat // logp.shape[-1], flat % logp.shape[-1]
        ended = token == how.end
        finishing = ended & (torch.arange(2 * k, device=device) < k) & ~done[:, None]
        best = best.add(
            torch.where(finishing, candidates / length**how.length_penalty, -torch.inf),
            _take(beams, origin),
        )
        bound = candidates[:, 0] / length**how.length_penalty
        done = done | (best.scores[:, -1] >= bound)
        # The best k that go on, in their order.
        keep = ended.long().argsort(dim=1, stable=True)[:, :k]
        origin, token, scores = (
            origin.gather(1, keep),
            token.gather(1, keep),
            candidates.gather(1, keep),
        )
        beams = torch.cat([_take(beams, origin), token[..., None]], -1)
        parents = (origin + torch.arange(batch, device=device)[:, None] * k).flatten()
        if bool(done.all()):
            break
    running = torch.where(done[:, None], -torch.inf, scores / beams.shape[-1] ** how.length_penalty)
    sequences = best.add(running, beams).sequences
    return sequences[:, : how.num_return, : how.max_length].flatten(0, 1)


@torch.no_grad()
def sample(step: Step, batch: int, how: Decoding, device: torch.device) -> Tensor:
    """Nucleus sampling: the smallest set of tokens with probability `top_p`. [batch, length]"""
    tokens = torch.full((batch, 1), how.begin, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    parents: Tensor | None = None
    for _ in range(1, how.max_length):
        logits = _adjust(step(tokens, parents).float(), tokens, how) / how.temperature
        probability, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # A token stays when those before it do not yet reach top_p; the first always does.
        outside = probability.cumsum(-1) - probability >= how.top_p
        outside[:, 0] = False
        drawn = torch.multinomial(probability.masked_fill(outside, 0.0), 1)
        token = order.gather(1, drawn)[:, 0].masked_fill(ended, how.pad)
        tokens = torch.cat([tokens, token[:, None]], 1)
        ended = ended | (token == how.end)
        parents = torch.arange(batch, device=device)
        if bool(ended.all()):
            break
    return tokens


def _adjust(scores: Tensor, tokens: Tensor, how: Decoding) -> Tensor:
    """Make repeated tokens less likely, repeated sequences and an early end impossible."""
    if how.repetition_penalty != 1.0:
        seen = scores.gather(1, tokens)
        penalty = how.repetition_penalty
        scores = scores.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))
    if how.no_repeat_ngram_size:
        from transformers import NoRepeatNGramLogitsProcessor

        scores = NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size)(tokens, scores)
    if tokens.shape[1] < how.min_length:
        scores = scores.clone()
        scores[:, how.end] = -torch.inf
    return scores


@dataclass
class Hypotheses:
    """Finished sequences, best first: scores [B, k], sequences [B, k, max_length + 1]."""

    scores: Tensor
    sequences: Tensor
    how: Decoding

    @staticmethod
    def empty(batch: int, k: int, how: Decoding, device: torch.device) -> Hypotheses:
        return Hypotheses(
            torch.full((batch, k), -torch.inf, device=device),
            torch.full((batch, k, how.max_length + 1), how.pad, device=device),
            how,
        )

    def add(self, scores: Tensor, beams: Tensor) -> Hypotheses:
        """Let candidates (scores [B, m], sequences [B, m, n]; -inf for none) compete."""
        rows = torch.nn.functional.pad(
            beams, (0, self.sequences.shape[-1] - beams.shape[-1]), value=self.how.pad
        )
        rows[..., beams.shape[-1]] = self.how.end
        pool, sequences = torch.cat([self.scores, scores], 1), torch.cat([self.sequences, rows], 1)
        order = pool.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        return Hypotheses(pool.gather(1, order), _take(sequences, order), self.how)


def _take(sequences: Tensor, index: Tensor) -> Tensor:
    """[B, k, n] rows `index` [B, m] -> [B, m, n]"""
    return sequences.gather(1, index[..., None].expand(-1, -1, sequences.shape[-1]))
