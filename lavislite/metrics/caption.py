"""BLEU, ROUGE-L, CIDEr, METEOR and SPICE of captions, as COCO's evaluation computes them.

The first three are pycocoevalcap's own scorers over our tokens (`ptb.py`), so they need no Java.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavislite.metrics import java as programs
from lavislite.metrics.ptb import tokenize

MEANS = ("ROUGE_L", "CIDEr", "SPICE")  # scores of a set that are the mean of its images' scores


@dataclass(frozen=True)
class CaptionScores:
    """Scores as fractions (CIDEr may exceed 1).

    Attributes:
        overall: metric to the score of the whole set.
        per_image: metric to image id to the image's own score. Only for `MEANS` is `overall` their
            mean; BLEU and METEOR sum statistics over the set.
        skipped: metric to the reason why it is not among the scores.
    """

    overall: dict[str, float]
    per_image: dict[str, dict[str, float]]
    skipped: dict[str, str] = field(default_factory=dict)

    def mean(self, metric: str, ids: Iterable[str]) -> float:
        """Mean of some images' scores: how NoCaps reports a domain.

        CIDEr weighs words by how many of *all* images mention them; the weights stay the same here,
        so the domains' means, weighted by size, give the overall score.

        Raises:
            ValueError: the metric is no mean over images, was not computed, or there are no ids.
        """
        if metric not in MEANS:
            raise ValueError(f"{metric} of a part is no mean over images; of {MEANS} it is.")
        if metric not in self.per_image:
            raise ValueError(f"{metric} was not computed: {self.skipped.get(metric, 'unknown')}.")
        values = [self.per_image[metric][key] for key in ids]
        if not values:
            raise ValueError(f"There is no image to average {metric} over.")
        return sum(values) / len(values)


def caption_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    java: bool | None = None,
) -> CaptionScores:
    """Scores of one caption per image against its references.

    Captions without a word ("", "...") count as empty ones. CIDEr weighs words by their rarity
    among the images: of a single image it is 0 by definition.

    Args:
        predictions: image id to caption. Ids are any strings.
        references: the same ids to one or more captions each.
        java: None computes METEOR and SPICE where they can run; False does not try.
            Either way a metric that is missing is named in `skipped`, True included.

    Returns:
        Bleu_1 ... Bleu_4, ROUGE_L, CIDEr, and METEOR and SPICE if they ran.

    Raises:
        ValueError: no captions, ids that do not fit, a caption that is no text, an image without
            references, or references without a single word.
    """
    _check(predictions, references)
    hypotheses, targets = _tokens(predictions, references)
    if not any(caption for captions in targets.values() for caption in captions):
        raise ValueError("None of the references contains a word; there is nothing to score by.")
    scores = CaptionScores({}, {})
    _score_in_python(scores, hypotheses, targets)
    for name, score in (("METEOR", programs.meteor), ("SPICE", programs.spice)):
        _score_in_java(scores, name, score, hypotheses, targets, wanted=java is not False)
    return scores


def captions_by_id(rows: Any) -> dict[str, str]:
    """The rows of a COCO result file ``[{"image_id": ..., "caption": ...}]`` as `predictions`.

    Raises:
        ValueError: not a list of such rows, or an id that comes twice.
    """
    if not isinstance(rows, list):
        raise ValueError(f"Caption results are a list of rows, got {type(rows).__name__}.")
    found: dict[str, str] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
            raise ValueError(f'Row {number} needs "image_id" and "caption", got {row!r}.')
        key = str(row["image_id"])
        if key in found:
            raise ValueError(f"Image {key!r} has two captions (again in row {number}); one counts.")
        found[key] = row["caption"]
    return found


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("There are no captions to score.")
    for message, ids in (
        ("images have no caption", references.keys() - predictions.keys()),
        ("captions belong to no image of the references", predictions.keys() - references.keys()),
    ):
        if ids:
            raise ValueError(
                f"{len(ids)} {message} (first: {min(ids, key=str)!r}); captions were given for "
                f"{len(predictions)} images, references for {len(references)}."
            )
    for key, caption in predictions.items():
        if not isinstance(key, str):
            raise ValueError(f"Image ids are strings, got {key!r} ({type(key).__name__}).")
        if not isinstance(caption, str):
            raise ValueError(f"The caption of image {key!r} is {caption!r}, not a text.")
    for key, captions in references.items():
        if isinstance(captions, str) or not captions:
            raise ValueError(f"Image {key!r} needs a list of references, got {captions!r}.")
        wrong = [caption for caption in captions if not isinstance(caption, str)]
        if wrong:
            raise ValueError(f"A reference of image {key!r} is {wrong[0]!r}, not a text.")


def _tokens(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Tokens, both in the references' order: the scores do not depend on the predictions' order."""
    captions = tokenize([predictions[key] for key in references])
    flat = iter(tokenize([caption for key in references for caption in references[key]]))
    targets = {key: [next(flat) for _ in references[key]] for key in references}
    return dict(zip(references, captions, strict=True)), targets


def _score_in_python(
    scores: CaptionScores, hypotheses: dict[str, str], targets: dict[str, list[str]]
) -> None:
    # Only these modules: the package's tokenizer, METEOR and SPICE start Java.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = {key: [caption] for key, caption in hypotheses.items()}
    totals, columns = Bleu(4).compute_score(targets, results, verbose=0)
    for n, (total, values) in enumerate(zip(totals, columns, strict=True), 1):
        _add(scores, f"Bleu_{n}", total, dict(zip(targets, values, strict=True)))
    for name, scorer in (("ROUGE_L", Rouge()), ("CIDEr", Cider())):
        total, values = scorer.compute_score(targets, results)
        _add(scores, name, total, dict(zip(targets, values, strict=True)))


def _score_in_java(
    scores: CaptionScores,
    name: str,
    score: Callable[..., tuple[float, dict[str, float]]],
    hypotheses: dict[str, str],
    targets: dict[str, list[str]],
    *,
    wanted: bool,
) -> None:
    if not wanted:
        scores.skipped[name] = "it needs Java, which was not asked for"
        return
    try:
        _add(scores, name, *score(hypotheses, targets))
    except programs.Unavailable as error:
        scores.skipped[name] = str(error)


def _add(scores: CaptionScores, name: str, total: float, each: dict[str, float]) -> None:
    scores.overall[name] = float(total)
    scores.per_image[name] = {key: float(value) for key, value in each.items()}
