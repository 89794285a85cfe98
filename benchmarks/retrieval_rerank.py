"""Re-ranking a gallery: the original's loop over queries, and ours, with the same scores.

    python benchmarks/retrieval_rerank.py
    python benchmarks/retrieval_rerank.py --quick --json retrieval_rerank.json

Size: the paper's fine-tuned retrieval model, every width halved: Q-Former 384 x 12, 32 queries, 677
image tokens (364 px) of width 704; five captions of 8 to 15 words per picture. Similarities are
those of pictures and texts in a small latent space, so that the candidates of the two directions
overlap as they do in a trained model. The image tower is left out: it is the same for both. The
sides run in turn, and must agree.

The last table is arithmetic: what COCO's 5,000 pictures and 25,010 texts with k = 128 need at the
paper's size, with texts of 12 tokens.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

import torch
from facts import command_line, facts, write_json
from feature_cache import build_model
from peers.qformer import bert
from peers.retrieval import LENGTH, peer_rerank
from side_by_side import gflop, in_turn, medians, product_of, ratio, table
from stage1_step import VOCABULARY
from torch import Tensor

from lavislite.common.evaluation import EvalContext
from lavislite.models.blip2.qformer import QFormer, QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.tasks.ranking import Candidates, ImageBatch, Matcher, match_scores

TOKENS, LATENT = 677, 8
CLOSE = 1e-4
COCO = {"images": 5000, "texts": 25_010, "k": 128, "tokens": 12}


class Named:
    """What a message about a dataset needs."""

    name, split = "gallery", "test"


class Gallery:
    """Pictures as tokens of the tower, texts, their similarities, and the candidates."""

    def __init__(self, images: int, k: int, words: list[str], width: int, seed: int = 0) -> None:
        draw, rng = torch.Generator().manual_seed(seed), random.Random(seed)
        self.k = k
        self.image_embeds = torch.randn(images, TOKENS, width, generator=draw)
        self.texts = [" ".join(rng.choices(words, k=rng.randint(8, 15))) for _ in range(5 * images)]
        latent = torch.randn(images, LATENT, generator=draw)
        said = latent.repeat_interleave(5, 0)
        said = said + 0.5 * torch.randn(said.shape, generator=draw)
        self.itc = torch.nn.functional.normalize(latent) @ torch.nn.functional.normalize(said).T
        self.candidates = Candidates.best(self.itc, k)
        self.wanted = self.candidates.pairs((images, 5 * images))


class Counter:
    """Counts pictures whose keys and values are projected, in the first layer that does it."""

    def __init__(self, model: Blip2Qformer) -> None:
        self.projected = self.pairs = 0
        layer = model.Qformer.layers[0]
        assert layer.crossattention is not None
        layer.crossattention.self.key.register_forward_hook(self._projected)
        model.itm_head.register_forward_hook(self._scored)

    def _projected(self, _: Any, args: tuple[Tensor], __: Tensor) -> None:
        self.projected += len(args[0])

    def _scored(self, _: Any, args: tuple[Tensor], __: Tensor) -> None:
        self.pairs += len(args[0])

    def take(self) -> dict[str, int]:
        found = {"pairs": self.pairs, "image_projections": self.projected}
        self.projected = self.pairs = 0
        return found


def ours(model: Blip2Qformer, gallery: Gallery, ctx: EvalContext) -> Tensor:
    with torch.no_grad():
        own = {
            k: ImageBatch(index.tolist(), gallery.image_embeds[index])
            for k, index in enumerate(torch.arange(len(gallery.itc)).split(ctx.batch_size))
        }
        matcher = Matcher(model, gallery.texts, ctx, 256)
        return match_scores(matcher, own, gallery.wanted, Named())


def check(peer: tuple[Tensor, Tensor], found: Tensor) -> float:
    """The largest difference of a score, in standard deviations of the scores.

    Raises:
        SystemExit: it is more than rounding.
    """
    spread = float(found[~found.isnan()].std())
    worst = 0.0
    for scores in peer:
        wanted = ~scores.isnan()
        worst = max(worst, float((scores - found)[wanted].abs().max()) / spread)
    if not worst < CLOSE:
        raise SystemExit(f"The scores differ by {worst:.2e} of their standard deviation.")
    return worst


def coco() -> dict[str, dict[str, float]]:
    """Pairs, image projections and operations for COCO, in both ways; no weights are needed."""
    n, m, k, length = COCO.values()
    with torch.device("meta"):
        model = QFormer(QFormerConfig(), vocab_size=30_523, image_width=1408)
        queries, image = torch.empty(1, 32, 768), torch.empty(1, 677, 1408)
        padded, ids = torch.empty(1, LENGTH, dtype=torch.long), torch.empty(1, length).long()
        model.eval()
        slow = gflop(lambda: bert(model, queries=queries, ids=padded, image=image))
        memory = model.image_memory(image)
        projecting = gflop(lambda: model.image_memory(image))
        fast = gflop(lambda: model.encode_pairs(queries, ids, torch.ones_like(ids), memory))
    directions, union = (n + m) * k, m * k
    return {
        "original": {
            "pairs": directions,
            "image_projections": directions,
            "pflop": round(directions * slow / 1e6, 1),
        },
        "ours, at most": {
            "pairs": directions,
            "image_projections": n,
            "pflop": round((directions * fast + n * projecting) / 1e6, 1),
        },
        "ours, at least": {
            "pairs": union,
            "image_projections": n,
            "pflop": round((union * fast + n * projecting) / 1e6, 1),
        },
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    words = [f"w{index}" for index in range(VOCABULARY - 5)]
    # The tower is not asked for anything: one layer is enough.
    model = build_model(words, divide=2, layers=1, dropout=0.1, device="cpu")
    model.eval()
    width = model.ln_vision.normalized_shape[0]
    gallery = Gallery(args.images, args.k, words, width)
    ctx = EvalContext(batch_size=args.batch_size)
    counter = Counter(model)

    def original() -> tuple[Tensor, Tensor]:
        return peer_rerank(model, gallery.image_embeds, gallery.texts, gallery.itc, gallery.k)

    def batched() -> Tensor:
        return ours(model, gallery, ctx)

    scores: dict[str, Any] = {}
    operations, counts = {}, {}
    for name, work in {"original": original, "ours": batched}.items():
        operations[name] = gflop(lambda: scores.__setitem__(name, work()))  # noqa: B023
        counts[name] = counter.take()
    difference = check(scores["original"], scores["ours"])
    product, product_gflop = product_of()
    works = {"original": original, "ours": batched, "product": product}
    seconds = in_turn(works, args.rounds, warm_up=0)
    rate = product_gflop / medians(seconds)["product"]
    return {
        "images": args.images,
        "texts": len(gallery.texts),
        "k": args.k,
        "counts": counts,
        "gflop": {name: round(value) for name, value in operations.items()},
        "seconds": {name: medians(seconds)[name] for name in operations},
        "seconds_floor": {name: round(value / rate, 3) for name, value in operations.items()},
        "times_faster": round(ratio(seconds, "original", "ours"), 2),
        "largest_difference": difference,
        "coco": coco(),
        "matmul_gflops_per_second": round(rate, 1),
        "rounds": args.rounds,
        **facts(args.threads),
    }


def report(found: dict[str, Any]) -> str:
    rows = [["side", "pairs", "image projections", "GFLOP", "seconds", "floor"]]
    for name, counts in found["counts"].items():
        figures = [found[key][name] for key in ("gflop", "seconds", "seconds_floor")]
        rows.append([name, *map(str, counts.values()), *(f"{value:.4g}" for value in figures)])
    arithmetic = [["COCO, k = 128", "pairs", "image projections", "PFLOP"]]
    for name, figures in found["coco"].items():
        pairs, projections, pflop = figures.values()
        arithmetic.append([name, f"{pairs:,}", f"{projections:,}", f"{pflop:,.0f}"])
    what = f"{found['images']} pictures, {found['texts']} texts, k = {found['k']}"
    return (
        f"{what}: {found['times_faster']:.2f} x faster, scores within "
        f"{found['largest_difference']:.0e} of their spread\n\n{table(rows)}\n\n{table(arithmetic)}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="eight pictures, k = 4, two rounds")
    parser.add_argument("--images", type=int, default=16, help="pictures (default 16)")
    parser.add_argument("--k", type=int, default=8, help="candidates per query (default 8)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.quick:
        args.images, args.k, args.rounds = 8, 4, 2
    found = measure(args)
    print(report(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
