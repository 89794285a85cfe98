"""Captions of a whole split: written, scored, kept for the server, shown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.generation import GenerationOptions
from lavislite.common.loading import batch_indices, evaluation_batches
from lavislite.common.logging import get_logger, warn_once
from lavislite.common.together import on_main
from lavislite.tasks.base import Row, evaluating, gather_rows, split_name
from lavislite.tasks.examples import Remembered, generated_examples
from lavislite.tasks.prompts import CaptionPrompt

logger = get_logger(__name__)

DOMAIN_METRICS = ("CIDEr", "SPICE")
# Numbers of COCO pictures: of their files, and as LAVIS writes them.
_COCO_NUMBER = re.compile(r"(?:.*/)?(?:COCO_\w+_|coco_)(\d+)(?:\.jpg)?")


class Captioner:
    """Writes and scores the captions of whole splits.

    Args:
        generation: how to write.
        prompt: how captions begin; None leaves it to the model.
        java: compute the metrics that need Java (METEOR, SPICE) as well, where they can run.
    """

    def __init__(
        self, generation: GenerationOptions, prompt: str | None = None, *, java: bool = True
    ) -> None:
        self.generation, self.prompt, self.java = generation, CaptionPrompt(prompt), java
        self.remembered = Remembered()
        self._scores: dict[tuple[str, str, str], float] = {}  # split, id, caption -> CIDEr

    def write(self, model: Any, samples: dict[str, Any]) -> list[str]:
        """One caption per picture of a batch."""
        options = generation_arguments(model.generate, self.generation, self.prompt)
        return model.generate({"image": samples["image"]}, **options)

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """The metrics of one split, the same on every process.

        ``Bleu_1`` to ``Bleu_4, ROUGE_L, CIDEr``, and ``METEOR, SPICE`` where they can run, on the
        official scale (CIDEr 1.4 where papers print 140); ``agg_metrics``, CIDEr plus Bleu_4; in
        each domain ``CIDEr_<domain>``, the mean of its pictures' scores; and the dataset's own.
        No metrics for a split without captions. The rows hold what was written for each picture,
        `files` the same as the COCO server wants it.

        Raises:
            ConfigError: not a dataset of captions, or a model that writes none.
            DataError: unreadable pictures, or pictures that share an id.
        """
        pictures = self._pictures(model, dataset)
        batches = batch_indices(len(pictures), ctx.batch_size, ctx.limit_batches)
        rows: list[Row] = []
        with evaluating(model):
            for _, samples in evaluation_batches(pictures, ctx, batches, split_name(dataset)):
                with ctx.autocast():
                    captions = self.write(model, samples)
                index = samples["index"].tolist()
                rows += [{"index": i, "caption": c} for i, c in zip(index, captions, strict=True)]
        rows = gather_rows(rows, "index", [i for batch in batches for i in batch], pictures)
        rows = [_described(row, pictures, dataset) for row in rows]
        _check_ids(rows, dataset)
        java = self.java and ctx.limit_batches is None  # a rehearsal need not wait for it
        metrics, scores, skipped = on_main(lambda: _scored(rows, dataset, java))
        for metric, reason in skipped.items() if java else ():
            warn_once(logger, ("caption metric", metric), f"{metric} was not computed: {reason}")
        rows = [
            row | {name: values[row["image_id"]] for name, values in scores.items()} for row in rows
        ]
        self._remember(rows, dataset)
        for row in rows:
            del row["index"]
        return EvalResult(metrics, rows, {"captions": server_file(rows)})

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        """Pictures with what the model writes, what people wrote, and the score if it is known."""
        pictures = self._pictures(model, dataset)
        chosen = self.remembered.pick(dataset, len(pictures), n)
        with evaluating(model):
            found = generated_examples(model, pictures, ctx, chosen, self.write)
        for row in found:
            known = self._scores.get((split_name(dataset), row["id"], row["generated"]))
            row["score"] = None if known is None else f"CIDEr {known:.2f}"
        return found

    def _remember(self, rows: Sequence[Row], dataset: Any) -> None:
        split = split_name(dataset)
        self._scores = {key: value for key, value in self._scores.items() if key[0] != split}
        for row in rows:
            if "CIDEr" in row:
                self._scores[split, row["image_id"], row["caption"]] = row["CIDEr"]
        scores = [(row["index"], row["CIDEr"]) for row in rows if "CIDEr" in row]
        self.remembered.keep(dataset, scores, least=None)

    def _pictures(self, model: Any, dataset: Any) -> Any:
        if not hasattr(dataset, "pictures"):
            raise ConfigError(
                f"{split_name(dataset)} offers no captions of whole pictures, it is scored by "
                f"'{dataset.evaluation}'. Use a dataset such as image_caption, coco_caption or "
                "nocaps."
            )
        if not hasattr(model, "generate"):
            raise ConfigError(
                f"{type(model).__name__} cannot write captions: it has no `generate`."
            )
        pictures = dataset.pictures()
        if not len(pictures):
            raise DataError(f"{split_name(dataset)} holds no pictures: nothing to evaluate.")
        return pictures


def generation_arguments(
    generate: Callable[..., Any], options: GenerationOptions, prompt: CaptionPrompt
) -> dict[str, Any]:
    """`options` and `prompt` as keyword arguments of a model's `generate`.

    With ``lavis_lengths`` the lengths go by LAVIS's names, and the model counts as LAVIS did. A
    model that knows only those (the Q-Former alone) counts the start as well.

    Raises:
        ConfigError: the model's `generate` has no place for an option that is set.
    """
    wanted = asdict(options)
    lavis = wanted.pop("lavis_lengths")
    known = inspect.signature(generate).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    counts_start = not anything and "max_new_tokens" not in known
    if lavis or counts_start:
        extra = 0 if lavis else 1
        wanted["max_length"] = wanted.pop("max_new_tokens") + extra
        wanted["min_length"] = wanted.pop("min_new_tokens") + extra
    wanted |= prompt.options()
    defaults = asdict(GenerationOptions())
    taken = {key: value for key, value in wanted.items() if anything or key in known}
    for key in wanted.keys() - taken.keys():
        if wanted[key] != defaults.get(key):
            section = "run" if key == "prompt" else "run.generation"
            raise ConfigError(f"{section}.{key}: this model's `generate` has no such option.")
    return taken


def server_file(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """``[{"image_id", "caption"}]`` with numbers for ids wherever they stand for numbers."""
    ids: list[Any] = [row["image_id"] for row in rows]
    numbers = [_number(image_id) for image_id in ids]
    if None not in numbers and len(set(numbers)) == len(numbers):
        ids = numbers
    return [{"image_id": i, "caption": row["caption"]} for i, row in zip(ids, rows, strict=True)]


def _number(image_id: str) -> int | None:
    coco = _COCO_NUMBER.fullmatch(image_id)
    digits = coco.group(1) if coco else image_id
    return int(digits) if digits.isascii() and digits.isdigit() else None


def _described(row: Row, pictures: Any, dataset: Any) -> Row:
    """What a row of results says about its picture."""
    i = row["index"]
    image_id = str(pictures.image_ids[i])
    found = {
        "index": i,
        "image_id": image_id,
        "image": str(pictures.image_paths[i]),
        "caption": row["caption"],
        "references": pictures.references(i),
    }
    domain = getattr(dataset, "domains", {}).get(image_id)
    return found if domain is None else {**found, "domain": domain}


def _check_ids(rows: Sequence[Row], dataset: Any) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        other = seen.setdefault(row["image_id"], row["image"])
        if other != row["image"]:
            raise DataError(
                f"{split_name(dataset)}: image_id {row['image_id']} stands for {other} and for "
                f"{row['image']}: captions are scored by image_id, so it must be one picture's."
            )


Scored = tuple[dict[str, float], dict[str, dict[str, float]], dict[str, str]]


def _scored(rows: Sequence[Row], dataset: Any, java: bool) -> Scored:
    """Metrics of the rows, each picture's own scores by metric and id, and what was left out."""
    captions = {row["image_id"]: row["caption"] for row in rows}
    metrics: dict[str, float] = {}
    per_image: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    without = [row["image_id"] for row in rows if not row["references"]]
    if len(without) == len(rows):
        logger.warning("%s has no captions: nothing to compare with.", split_name(dataset))
    elif without:
        raise DataError(
            f"{split_name(dataset)}: {len(without)} of {len(rows)} pictures have no caption, "
            f"the first is {without[0]}."
        )
    else:
        metrics, per_image, skipped = _compared(rows, captions, dataset, java)
    if hasattr(dataset, "score_captions"):
        metrics |= dataset.score_captions(captions)
    return metrics, per_image, skipped


def _compared(rows: Sequence[Row], captions: Mapping[str, str], dataset: Any, java: bool) -> Scored:
    """The official metrics; in each domain the mean of its pictures' scores, as NoCaps has it."""
    from lavislite.metrics.caption import caption_scores

    references = {row["image_id"]: row["references"] for row in rows}
    try:
        scores = caption_scores(captions, references, java=None if java else False)
    except ValueError as error:
        raise DataError(f"Captions of {split_name(dataset)}: {error}") from error
    metrics = dict(scores.overall)
    metrics["agg_metrics"] = metrics["CIDEr"] + metrics["Bleu_4"]
    for domain in dict.fromkeys(row["domain"] for row in rows if "domain" in row):
        ids = [row["image_id"] for row in rows if row.get("domain") == domain]
        for metric in DOMAIN_METRICS:
            if metric in scores.per_image:
                name = f"{metric}_{domain.removesuffix('-domain')}"
                metrics[name] = scores.mean(metric, ids)
    return metrics, scores.per_image, scores.skipped
