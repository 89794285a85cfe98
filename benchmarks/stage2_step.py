"""One training step of stage 2 with OPT: the original's way, ours, and ours with cached features.

    python benchmarks/stage2_step.py                    # the size below, fp32, 2 threads
    python benchmarks/stage2_step.py --quick --json stage2_step.json

Size: the image tower and Q-Former of `stage1_step.py` (384 x 12 layers each), OPT 512 x 6 layers
with a vocabulary of 50,272, frozen; captions of 12 to 23 tokens, padded to the longest; batch 16;
dropout 0.1. The sides run in turn (A B C, A B C, ...) on the same weights; ratios are medians over
the rounds. The floor is the operations over the rate of a matrix product, measured in between. All
that twice: as the C library keeps freed memory by itself, and as our runner asks it to on a CPU.

Sides: "original" is `peers/stage2.py`; "cached" is ours with the image tower's output in the batch
(`run.feature_cache`); "transformers" is the library's own BLIP-2 on the exported weights, where
ln_vision belongs to the frozen tower.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from facts import command_line, facts, write_json
from peers.stage2 import peer_loss
from side_by_side import Side, both_ways_with_memory, steps_report

from lavislite.models.blip2.qformer import QFormerConfig
from lavislite.models.blip2.stage2 import Blip2OPT, Blip2OPTConfig
from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig

ORIGINAL_GFLOP = 420
VOCABULARY = 50_272
LAYERS, OPT_LAYERS = 12, 6  # of the image tower and of the Q-Former; of the language model
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "Ċ")  # the last is how byte-level BPE spells "\n"


def word(number: int) -> str:
    """Four letters, another word for each number."""
    return "".join(LETTERS[number // 26**place % 26] for place in range(4))


def write_opt(folder: Path) -> None:
    """Configuration and tokenizer of an OPT whose every word is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import OPTConfig, PreTrainedTokenizerFast

    words = [f"Ġ{word(n)}" for n in range(VOCABULARY - len(SPECIALS))]
    vocabulary = {token: n for n, token in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="</s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
    OPTConfig(
        vocab_size=VOCABULARY, hidden_size=512, word_embed_proj_dim=512, ffn_dim=2048,
        num_hidden_layers=OPT_LAYERS, num_attention_heads=8, max_position_embeddings=512,
        dropout=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip


def build_model(folder: Path, dropout: float) -> Blip2OPT:
    write_opt(folder)
    qformer = QFormerConfig(
        hidden_size=384,
        num_layers=LAYERS,
        num_heads=6,
        intermediate_size=1536,
        dropout=dropout,
        attention_dropout=dropout,
        init="none",
    )
    config = Blip2OPTConfig(
        # Without its final norm, which transformers' BLIP-2 has no place for.
        vision=VisionConfig(
            name="timm:vit_small_patch16_224",
            weights="none",
            final_norm=False,
            options={"depth": LAYERS},
        ),
        qformer=qformer,
        language=LanguageConfig(name=str(folder), weights="none", end="\n", precision="fp32"),
    )
    return Blip2OPT.from_config(config)


def one_batch(batch_size: int, rng: random.Random) -> dict[str, Any]:
    words = range(VOCABULARY - len(SPECIALS))
    captions = [
        "".join(f" {word(n)}" for n in rng.choices(words, k=rng.randint(12, 23)))
        for _ in range(batch_size)
    ]
    return {"image": torch.randn(batch_size, 3, 224, 224), "text_input": captions}


def transformers_side(model: Blip2OPT, batch: dict[str, Any], folder: Path) -> Side:
    """The library's BLIP-2 with the same weights, what ours keeps frozen being frozen."""
    from transformers import Blip2ForConditionalGeneration

    from lavislite.models.blip2.hf_export import export_hf

    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(export_hf(model, folder)).train()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_model", "language_model")))
    queries, image_token = theirs.config.num_query_tokens, theirs.config.image_token_index
    tokenizer = model.language.tokenizer

    def loss(samples: dict[str, Any]) -> torch.Tensor:
        texts = [text + "\n" for text in samples["text_input"]]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        before = torch.full((len(texts), queries), image_token)
        ids = torch.cat([before, tokens["input_ids"]], 1)
        mask = torch.cat([torch.ones_like(before), tokens["attention_mask"]], 1)
        labels = ids.masked_fill((mask == 0) | (ids == image_token), -100)
        return theirs(
            pixel_values=samples["image"], input_ids=ids, attention_mask=mask, labels=labels
        ).loss

    return Side(theirs, loss, batch)


def make_sides(args: argparse.Namespace, folder: Path) -> dict[str, Side]:
    model = build_model(folder / "opt", args.dropout)
    model.train()
    batch = one_batch(args.batch_size, random.Random(0))
    features = model.tower_features(batch["image"])
    cached = {"image_features": features, "text_input": batch["text_input"]}
    sides = {
        "original": Side(model, lambda samples: peer_loss(model, samples)["loss"], batch),
        "ours": Side(model, lambda samples: model(samples)["loss"], batch, fused=True),
        "cached": Side(model, lambda samples: model(samples)["loss"], cached, fused=True),
    }
    if not args.without_transformers:
        sides["transformers"] = transformers_side(model, batch, folder / "exported")
    return sides


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(args, Path(folder))
    pairs = [("original", "ours"), ("original", "cached")]
    if "transformers" in sides:
        pairs.append(("transformers", "ours"))
    return {
        **both_ways_with_memory(sides, pairs, args.steps),
        "gflop_original": ORIGINAL_GFLOP,
        "batch_size": args.batch_size,
        "steps": args.steps,
        **facts(args.threads),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__, quick="three rounds")
    parser.add_argument("--steps", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--without-transformers", action="store_true")
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps = 3
    found = measure(args)
    print(steps_report(found))
    write_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
