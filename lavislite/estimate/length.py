"""How many steps a recipe takes, without its data."""

from __future__ import annotations

from typing import Any

from lavislite.common.config import Config

# Builder -> split -> training samples: captions or questions of the usual files (some of them
# round numbers), and the pictures, which count where one caption of several is drawn.
SAMPLES: dict[str, dict[str, int]] = {
    "coco_caption": {"train": 566_747},
    "coco_retrieval": {"train": 566_747},
    "vg_caption": {"train": 821_774},
    "flickr30k": {"train": 145_000},
    "sbu_caption": {"train": 860_000},
    "conceptual_caption_3m": {"train": 3_318_333},
    "conceptual_caption_12m": {"train": 10_000_000},
    "coco_vqa": {"train": 443_757, "val": 214_354},
    "vg_vqa": {"train": 1_440_000},
    "gqa": {"train": 943_000},
    "ok_vqa": {"train": 9_009},
    "aok_vqa": {"train": 17_056},
}
PICTURES = {"coco_caption": 113_287, "coco_retrieval": 113_287, "vg_caption": 100_000}


def total_steps(cfg: Config, world: int, samples: int | None, notes: list[str]) -> int | None:
    """Optimizer steps of the whole run on `world` processes; None when that is not known.

    Args:
        samples: training samples of an epoch; None looks them up.
        notes: receives a sentence when sizes were looked up, or are missing.
    """
    run = cfg.run
    if run.max_steps is not None:
        return run.max_steps
    if run.steps_per_epoch is not None:
        return run.max_epoch * run.steps_per_epoch
    known = samples if samples is not None else _known_samples(cfg, notes)
    if known is None:
        return None
    batches = known // (run.batch_size_train * world)
    return run.max_epoch * -(-batches // run.accum_grad_iters)


def _known_samples(cfg: Config, notes: list[str]) -> int | None:
    total = 0
    for name, options in cfg.datasets.items():
        if options.ratio == 0:
            continue
        found = _samples(options.builder or name, options, cfg.run.train_splits)
        if found is None:
            notes.append(f"hours: the size of '{name}' is not known; say --samples")
            return None
        total += found
    notes.append(f"an epoch: {total:,} samples, the usual size of these data sets")
    return total


def _samples(builder: str, options: Any, splits: list[str]) -> int | None:
    if builder not in SAMPLES:
        return None
    if getattr(options, "captions_per_image", "all") == "random" and builder in PICTURES:
        return PICTURES[builder]
    return sum(SAMPLES[builder].get(split, 0) for split in splits)
