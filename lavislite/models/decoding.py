"""Decoding one token at a time: beam search, the likeliest token, sampling from the most likely.

All ask a `Step` for scores and know nothing else of the model. Lengths count the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# (tokens so far [N, n], for each row the row of the previous call that it continues; None: the same
# one, or the first call) -> scores of the next token [N, vocabulary]. Beam search begins with one
# row for each text and goes on with `num_beams`.
Step = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Decoding:
    """How to decode. `max_length` and `min_length` count the first and the last token.

    end, more_ends: tokens that end a sequence. num_return: so many of the best beams of each row
        are the result.
    begin_is_seen: the rules against repetition count the first token.
    lavis: beam search as transformers 4.33 did it for LAVIS, else as transformers 5 does.
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
    more_ends: tuple[int, ...] = ()
    begin_is_seen: bool = True
    lavis: bool = True

    @property
    def ends(self) -> tuple[int, ...]:
        return (self.end, *self.more_ends)


@torch.no_grad()
def beam_search(step: Step, batch: int, how: Decoding, device: torch.device) -> Tensor:
    """The best sequences of each of `batch` rows: [batch * num_return, length], ended and padded.

    A hypothesis scores sum(log p) / length ** length_penalty, its end not counted if the first
    token is, and a row is done when no running beam can still beat the worst of its `num_beams`
    hypotheses, going by the best candidate (`lavis`) or the best that goes on. One beam is greedy.
    """
    k, few = how.num_beams, (1 + len(how.ends)) * how.num_beams
    ends = torch.tensor(how.ends, device=device)
    beams = torch.full((batch, 1, 1), how.begin, device=device)  # only one: all would be equal
    scores = torch.zeros((batch, 1), device=device)
    best = Hypotheses.empty(batch, k, how, device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    first = torch.arange(few, device=device) < k
    parents: Tensor | None = None
    for length in range(1, how.max_length):
        tokens, running = beams.flatten(0, 1), beams.shape[1]
        logp = _adjust(step(tokens, parents).float().log_softmax(-1), tokens, how)
        candidates, origin, token = _continue(logp.unflatten(0, (batch, running)), scores, few)
        ended = torch.isin(token, ends)
        longer = torch.cat([_take(beams, origin), token[..., None]], -1)
        leaving = ended | (not how.lavis and length == how.max_length - 1)
        finishing = leaving & first & ~done[:, None]
        weight = length**how.length_penalty
        best = best.add(torch.where(finishing, candidates / weight, -torch.inf), longer)
        # The best k that go on, in their order.
        keep = ended.long().argsort(dim=1, stable=True)[:, :k]
        beams, scores = _take(longer, keep), candidates.gather(1, keep)
        done = done | (best.scores[:, -1] >= (candidates if how.lavis else scores)[:, 0] / weight)
        offset = torch.arange(batch, device=device)[:, None] * running
        parents = (origin.gather(1, keep) + offset).flatten()
        if bool(done.all()):
            break
    if how.lavis:
        left = scores / beams.shape[-1] ** how.length_penalty
        best = best.add(torch.where(done[:, None], -torch.inf, left), beams)
    return best.sequences[:, : how.num_return].flatten(0, 1)


def _continue(logp: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of beams with log p [B, beams, V] of each token and `scores` so far.

    Returns:
        [B, count] each: scores, best first; beams; tokens.
    """
    best, token = top(logp, min(count, logp.shape[-1]))  # of each beam: that many may be its own
    each, beams = best.shape[-1], best.shape[1]
    total = (best + scores[..., None]).flatten(1)
    if total.shape[1] < count:
        total = F.pad(total, (0, count - total.shape[1]), value=-torch.inf)
    total, index = total.topk(count)
    index = index.clamp(max=beams * each - 1)
    return total, index // each, token.flatten(1).gather(1, index)


def top(x: Tensor, count: int, block: int = 64) -> tuple[Tensor, Tensor]:
    """``x.topk(count)`` of long rows, faster: the largest are in the blocks with the largest heads.

    Args:
        x: [..., V]; of equal values any may be found.
    """
    blocks = x.shape[-1] // block
    if blocks <= count:
        return x.topk(count)
    whole = x[..., : blocks * block].unflatten(-1, (blocks, block))
    chosen = whole.amax(-1).topk(count).indices
    found = whole.gather(-2, chosen[..., None].expand(*chosen.shape, block)).flatten(-2)
    within = torch.arange(block, device=x.device)
    index = (chosen[..., None] * block + within).flatten(-2)
    rest = torch.arange(blocks * block, x.shape[-1], device=x.device)
    found = torch.cat([found, x[..., blocks * block :]], -1)
    index = torch.cat([index, rest.expand(*index.shape[:-1], -1)], -1)
    values, place = found.topk(count)
    return values, index.gather(-1, place)


def greedy(step: Step, batch: int, how: Decoding, device: torch.device) -> Tensor:
    """The likeliest token each time. [batch, length], ended and padded."""
    return _one_by_one(step, batch, how, device, lambda scores: scores.argmax(-1))


def sample(step: Step, batch: int, how: Decoding, device: torch.device) -> Tensor:
    """Nucleus sampling: the smallest set of tokens with probability `top_p`. [batch, length]"""

    def draw(scores: Tensor) -> Tensor:
        probability, order = (scores / how.temperature).softmax(-1).sort(dim=-1, descending=True)
        # A token stays when those before it do not yet reach top_p; the first always does.
        outside = probability.cumsum(-1) - probability >= how.top_p
        outside[:, 0] = False
        drawn = torch.multinomial(probability.masked_fill(outside, 0.0), 1)
        return order.gather(1, drawn)[:, 0]

    return _one_by_one(step, batch, how, device, draw)


@torch.no_grad()
def _one_by_one(
    step: Step, batch: int, how: Decoding, device: torch.device, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    ends = torch.tensor(how.ends, device=device)
    tokens = torch.full((batch, 1), how.begin, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    for _ in range(1, how.max_length):
        token = choose(_adjust(step(tokens, None).float(), tokens, how)).masked_fill(ended, how.pad)
        tokens = torch.cat([tokens, token[:, None]], 1)
        ended = ended | torch.isin(token, ends)
        if bool(ended.all()):
            break
    return tokens


def _adjust(scores: Tensor, tokens: Tensor, how: Decoding) -> Tensor:
    """Make repeated tokens less likely, repeated sequences and an early end impossible."""
    length, seen = tokens.shape[1], tokens if how.begin_is_seen else tokens[:, 1:]
    if how.repetition_penalty != 1.0:
        before, penalty = scores.gather(1, seen), how.repetition_penalty
        after = torch.where(before < 0, before * penalty, before / penalty)
        scores = scores.scatter(1, seen, after)
    if how.no_repeat_ngram_size:
        from transformers import NoRepeatNGramLogitsProcessor

        scores = NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size)(seen, scores)
    if length < how.min_length:
        scores = scores.clone()
        scores[:, how.ends] = -torch.inf
    return scores


@dataclass
class Hypotheses:
    """Finished sequences, best first: scores [B, k], sequences [B, k, max_length]."""

    scores: Tensor
    sequences: Tensor
    how: Decoding

    @staticmethod
    def empty(batch: int, k: int, how: Decoding, device: torch.device) -> Hypotheses:
        return Hypotheses(
            torch.full((batch, k), -torch.inf, device=device),
            torch.full((batch, k, how.max_length), how.pad, device=device),
            how,
        )

    def add(self, scores: Tensor, beams: Tensor) -> Hypotheses:
        """Let candidates (scores [B, m], sequences [B, m, n]; -inf for none) compete."""
        missing = self.sequences.shape[-1] - beams.shape[-1]
        rows = F.pad(beams, (0, missing), value=self.how.pad)
        pool, sequences = torch.cat([self.scores, scores], 1), torch.cat([self.sequences, rows], 1)
        order = pool.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        return Hypotheses(pool.gather(1, order), _take(sequences, order), self.how)


def _take(sequences: Tensor, index: Tensor) -> Tensor:
    """[B, k, n] rows `index` [B, m] -> [B, m, n]"""
    return sequences.gather(1, index[..., None].expand(-1, -1, sequences.shape[-1]))
