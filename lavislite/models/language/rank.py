"""How likely each of many answers is: prompts are read once, and every beginning of an answer.

Answers have beginnings in common ("red", "red and white"). They are put into a tree;
its levels are read one after the other, each node in a branch of its own after its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavislite.models.language.reading import Reading

Ids = tuple[int, ...]


def rank_by_nll(
    language: Any,
    prefix: Tensor,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    prefix_mask: Tensor | None = None,
    at_once: int = 128,
) -> list[Tensor]:
    """`rank` for a model that only has `nll`: `at_once` pairs of prompt and answer at a time."""
    rows = [row for row, choices in enumerate(answers) for _ in choices]
    targets = [answer for choices in answers for answer in choices]
    totals = []
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        index = torch.tensor(rows[part], device=prefix.device)
        nll = language.nll(
            prefix.index_select(0, index),
            [prompts[row] for row in rows[part]],
            targets[part],
            prefix_mask=None if prefix_mask is None else prefix_mask.index_select(0, index),
        )
        totals.append(nll.total)
    return list(torch.cat(totals).split([len(choices) for choices in answers]))


def rank_after(
    reading: Reading, answers: Sequence[Sequence[Ids]], *, at_once: int = 128
) -> list[Tensor]:
    """-log p of each answer (token ids) after each of the prompts read.

    Args:
        at_once: so many branches at most are read at once.
    """
    totals: list[Tensor] = []
    tree, known = Tree([], []), None
    for rows in _groups([len(choices) for choices in answers], at_once):
        choices = [answers[row] for row in rows]
        if choices != known:  # the same list of answers for every question: one tree
            tree, known = Tree.of(choices), choices
        total = _read_tree(reading, tree, rows, at_once)
        totals += total.split([len(entry) for entry in choices])
    return totals


def _groups(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Neighbouring prompts that have together at most `most` answers, at least one prompt."""
    first = 0
    for row in range(len(sizes)):
        if row > first and sum(sizes[first : row + 1]) > most:
            yield range(first, row)
            first = row
    if sizes:
        yield range(first, len(sizes))


@dataclass
class Level:
    """Nodes that are equally many tokens deep; those with deeper ones below them come first.

    roots: the prompt of each. parents: its node in the level above. tokens: its last token.
    inner: how many have deeper ones below them.
    wanted: [3, m] what is asked: node (in order), token after it, answer that has it.
    """

    roots: list[int]
    parents: Tensor
    tokens: Tensor
    inner: int
    wanted: Tensor


@dataclass
class Tree:
    """Answers by their beginnings. counts: answers of each root."""

    levels: list[Level]
    counts: list[int]

    @staticmethod
    def of(choices: Sequence[Sequence[Ids]]) -> Tree:
        """Of the answers after each root."""
        rows = [(root, answer) for root, entry in enumerate(choices) for answer in entry]
        levels: list[Level] = []
        above: dict[tuple[int, Ids], int] = {}
        for depth in range(max((len(answer) for _, answer in rows), default=0)):
            here = [(i, (root, a[:depth]), a) for i, (root, a) in enumerate(rows) if len(a) > depth]
            # Whoever has more than one token to come has a node below this one.
            ahead = [node for _, node, answer in here if len(answer) > depth + 1]
            nodes = {node: i for i, node in enumerate(dict.fromkeys(ahead))}
            inner = len(nodes)
            if depth == 0:  # the prompts in their order, whoever has no answers too
                nodes, inner = {(root, ()): root for root in range(len(choices))}, len(choices)
            for _, node, _ in here:
                nodes.setdefault(node, len(nodes))
            wanted = sorted((nodes[node], answer[depth], i) for i, node, answer in here)
            levels.append(
                Level(
                    [root for root, _ in nodes],
                    torch.tensor([above.get((root, a[:-1]), 0) for root, a in nodes]),
                    torch.tensor([a[-1] if a else 0 for _, a in nodes]),
                    inner,
                    torch.tensor(wanted).reshape(-1, 3).T,
                )
            )
            above = nodes
        return Tree(levels, [len(entry) for entry in choices])


def _read_tree(reading: Reading, tree: Tree, rows: Sequence[int], at_once: int) -> Tensor:
    """-log p [answers] of all answers of the tree, whose roots are the prompts `rows`."""
    device = reading.logits.device
    total = torch.zeros(sum(tree.counts), device=device)
    past: list[Tensor] | None = None
    for depth, level in enumerate(tree.levels):
        wanted, first = level.wanted, 0
        kept: list[list[Tensor]] = []
        for start in range(0, len(level.roots), at_once):
            part = slice(start, min(start + at_once, len(level.roots)))
            logits = reading.logits[rows[0] : rows[-1] + 1][part]
            if depth:
                parents = level.parents[part].to(device, non_blocking=True)
                before = None if past is None else [x.index_select(0, parents) for x in past]
                reading.branch([rows[root] for root in level.roots[part]], before)
                logits = reading.read(level.tokens[part, None].to(device, non_blocking=True))
                inner = slice(0, max(min(level.inner, part.stop) - start, 0))
                kept.append([x.clone() for x in reading.past(inner)])
            last = int(torch.searchsorted(wanted[0].contiguous(), part.stop))
            node, token, answer = wanted[:, first:last].to(device, non_blocking=True)
            first = last
            logits, node = logits.float(), node - start
            total.index_add_(0, answer, logits.logsumexp(-1)[node] - logits[node, token])
        past = [torch.cat(parts) for parts in zip(*kept, strict=True)] if kept else None
    return total
