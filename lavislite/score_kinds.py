"""How `lavislite score` scores each kind of result: one function per kind.

Each reads the server's own files, refuses what does not fit before it computes anything, and
returns a `Report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from lavislite.common.errors import DataError, UserError
from lavislite.common.logging import get_logger
from lavislite.score_files import (
    check_questions,
    read_annotations,
    read_aokvqa_predictions,
    read_aokvqa_questions,
    read_attention,
    read_captions,
    read_object,
    read_results,
)
from lavislite.score_report import Files, Report

logger = get_logger(__name__)

T = TypeVar("T")

ANNOTATORS = 10  # what the VQA rule was made for
_GQA = (
    *("accuracy", "binary", "open", "validity", "plausibility", "consistency", "grounding"),
    "distribution",
)


def score_vqa(files: Files, kind: str = "vqa") -> Report:
    """VQA accuracy: VQAv2, TextVQA, VizWiz and other sets with several answers per question."""
    from lavislite.metrics.results import answers_by_id
    from lavislite.metrics.vqa import vqa_scores

    results = read_results(files.predictions)
    annotations = read_annotations(files.annotations)
    if files.questions is not None:
        check_questions(files.questions, annotations, files.annotations)
    _checked(files, answers_by_id, results, [row["question_id"] for row in annotations])
    lemmas = _lemmatized(results) if files.lemmatize else None
    scores = _checked(files, vqa_scores, results, annotations, files.version, files.few)
    report = Report(kind, {"accuracy": scores.overall})
    if lemmas is not None:
        again = vqa_scores(lemmas, annotations, files.version, files.few)
        report.scores["accuracy, predictions lemmatised"] = again.overall
    report.groups = {
        kind.replace("_", " "): _sized(group, annotations, kind)
        for kind, group in (
            ("answer_type", scores.by_answer_type),
            ("question_type", scores.by_question_type),
        )
        if group
    }
    report.each = {str(key): score for key, score in scores.by_question.items()}
    report.notes.append(f"rule: {files.version}; with few answers: {files.few}")
    if files.few == "official":
        _warn_of_odd_annotators(results, annotations, files.version, scores.overall)
    return report


def score_ok_vqa(files: Files) -> Report:
    """OK-VQA: VQA accuracy, of the predictions as they are and of their lemmas."""
    if files.lemmatize or find_spec("simplemma"):
        return score_vqa(replace(files, lemmatize=True), "ok_vqa")
    report = score_vqa(files, "ok_vqa")
    report.notes.append("lemmatised predictions: not scored, pip install simplemma")
    return report


def score_gqa(files: Files) -> Report:
    """GQA: the official script's figures, and the accuracy by LAVIS's rule."""
    from lavislite.metrics.gqa import gqa_match, gqa_scores
    from lavislite.metrics.results import answers_by_id

    questions = read_object(files.annotations, "GQA questions")
    optional = {
        name: None if path is None else load(path)
        for name, path, load in (
            ("choices", files.choices, partial(read_object, what="GQA choices")),
            ("scene_graphs", files.scenes, partial(read_object, what="GQA scene graphs")),
            ("attention", files.attention, read_attention),
        )
    }
    rows = read_results(files.predictions)
    names = ("questionId", "prediction")
    balanced = [k for k, q in questions.items() if isinstance(q, Mapping) and q.get("isBalanced")]
    required = questions if files.consistency else balanced
    predictions = _checked(files, answers_by_id, rows, questions, *names, required=required)
    scores = _checked(
        files,
        gqa_scores,
        predictions,
        questions,
        **optional,
        consistency=files.consistency,
        object_features=files.object_features,
    )
    hits = [gqa_match(predictions[key], questions[key]["answer"]) for key in scores.by_question]
    report = Report("gqa", {name: getattr(scores, name) for name in _GQA})
    report.scores["accuracy by LAVIS's rule"] = 100.0 * sum(hits) / len(hits)
    report.notes = [
        f"{name}: needs {what}"
        for name, what in (
            ("validity", "--choices"),
            ("plausibility", "--choices"),
            ("consistency", "--consistency and predictions for all questions"),
            ("grounding", "--scenes and --attention"),
        )
        if report.scores[name] is None
    ]
    report.notes.append("distribution: a distance, lower is better")
    report.groups = {
        "structural type": scores.by_structural,
        "semantic type": scores.by_semantic,
        "steps": {str(n): scores.by_steps[n] for n in sorted(scores.by_steps)},
        "words": {str(n): scores.by_length[n] for n in sorted(scores.by_length)},
    }
    report.each = dict(scores.by_question)
    return report


def score_aok_vqa(files: Files) -> Report:
    """A-OKVQA: direct answers and multiple choice, whichever the predictions hold."""
    from lavislite.metrics.aokvqa import aokvqa_scores

    questions = read_aokvqa_questions(files.annotations)
    given = read_aokvqa_predictions(files.predictions, multiple_choice=files.multiple_choice)
    report = Report("aok_vqa", {})
    for name, predictions in given.items():
        report.scores[name.replace("_", " ")] = _checked(
            files,
            aokvqa_scores,
            predictions,
            questions,
            multiple_choice=name == "multiple_choice",
        )
    if "direct_answer" in given:
        report.notes.append(
            "direct answer: without the questions marked as difficult, as in the official script"
        )
    return report


def score_captions(files: Files, kind: str = "caption") -> Report:
    """COCO's caption metrics; METEOR and SPICE where Java can run them."""
    from lavislite.metrics.caption import caption_scores, captions_by_id

    images, annotations = read_captions(files.annotations)
    references: dict[str, list[Any]] = {str(image["id"]): [] for image in images}
    for row in annotations:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    predictions = _checked(files, captions_by_id, read_results(files.predictions))
    scores = _checked(files, caption_scores, predictions, references)
    report = Report(kind, {name: 100.0 * value for name, value in scores.overall.items()})
    report.notes = ["fractions times 100", *(f"{k}: {why}" for k, why in scores.skipped.items())]
    report.each = {
        image: {metric: each[image] for metric, each in scores.per_image.items()}
        for image in references
    }
    if kind == "nocaps":
        domains: dict[str, list[str]] = {}
        for image in images:
            if image.get("domain") is not None:
                domains.setdefault(str(image["domain"]), []).append(str(image["id"]))
        if not domains:
            report.notes.append(f"domains: {files.annotations} does not tell them (`domain`)")
        for metric in (m for m in ("CIDEr", "SPICE") if domains and m in scores.overall):
            report.groups[metric] = {
                name: (100.0 * scores.mean(metric, ids), len(ids)) for name, ids in domains.items()
            }
    return report


def score_nocaps(files: Files) -> Report:
    """NoCaps: the caption metrics, CIDEr and SPICE also per domain.

    Words are weighed by all images' references in each domain, so that the domains' scores average
    to the one of the whole set.
    """
    return score_captions(files, "nocaps")


# ------------------------------------------------------------------------------------------- parts


def _checked(files: Files, compute: Callable[..., T], *args: Any, **options: Any) -> T:
    """What `compute` returns; its complaints name the files."""
    try:
        return compute(*args, **options)
    except ValueError as error:
        text = str(error)
        end = "" if text.endswith((".", "?")) else "."
        raise DataError(f"{files.predictions}, with {files.annotations}: {text}{end}") from error


def _lemmatized(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from lavislite.metrics.lemmas import lemmatize

    try:
        return [{**row, "answer": lemmatize(row["answer"])} for row in results]
    except ImportError as error:
        raise UserError(f"--lemmatize: {error}") from error


def _sized(
    scores: Mapping[str, float], annotations: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, tuple[float, int]]:
    """Each type's score and size, the largest first."""
    sizes = Counter(str(row.get(kind)) for row in annotations)
    return {name: (scores[name], n) for name, n in sizes.most_common() if name in scores}


def _warn_of_odd_annotators(
    results: Any, annotations: Sequence[Mapping[str, Any]], version: str, official: float
) -> None:
    """Say where the official rule gives figures that hardly anybody wants."""
    from lavislite.metrics.vqa import answer_text, vqa_scores

    lengths = [len(row["answers"]) for row in annotations if len(row["answers"]) != ANNOTATORS]
    if lengths:
        scaled = vqa_scores(results, annotations, version, "scaled").overall
        logger.warning(
            f"{len(lengths)} of {len(annotations)} questions have other than {ANNOTATORS} answers "
            f"({min(lengths)} to {max(lengths)}). The official rule never gives 100 to an answer "
            f"with fewer than four annotators: {official:.2f}. --few scaled asks for as many "
            f"agreeing ones as there can be: {scaled:.2f}."
        )
    alike = sum(_has_equals(row["answers"]) for row in annotations)
    if alike:
        apart = [
            {**row, "answers": [answer_text(a) for a in row["answers"]]} for row in annotations
        ]
        each = vqa_scores(results, apart, version).overall
        logger.warning(
            f"{alike} of {len(annotations)} questions have annotators that cannot be told apart "
            f"(equal entries, no answer_id). The official rule leaves equals out together: "
            f"{official:.2f}. With each as an annotator of their own: {each:.2f}."
        )


def _has_equals(answers: Sequence[Any]) -> bool:
    entries = [repr(sorted(a.items(), key=str)) for a in answers if isinstance(a, Mapping)]
    return len(set(entries)) < len(entries)
