"""VQA accuracy: how many of ten annotators gave this answer.

An answer's accuracy is ``min(1, n / 3)`` for the n other annotators who agree with it, averaged
over leaving out each annotator once: 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 and more of ten. Before
they are compared, answers are normalised. The official script did that in two ways:

- "2021", its current state: when all annotators agree, nothing is normalised but white space;
  otherwise both sides are, punctuation and words.
- "2017", which LAVIS uses: the prediction always in full, the annotators' answers for punctuation
  only, and only where they differ.

The rule was made for ten annotators. With three it gives a right answer 0.67 at most, with one
always 0; ``few="scaled"`` asks for as many agreeing annotators as there can be instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavislite.metrics.results import answers_by_id, rows_by_id

VERSIONS = ("2021", "2017")
FEW = ("official", "scaled")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the official script's flag landed where the count belongs
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(n) for n, word in enumerate(_NUMBERS)}}
# The right spellings; the wrong ones that are mended lack exactly one of the apostrophes.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_MENDED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # a slip of the official table

Answers = Sequence[Any]  # of strings, or of objects with `answer`


def answer_text(answer: Any) -> str:
    """An annotator's answer, which is a text or the official object with one."""
    return answer["answer"] if isinstance(answer, Mapping) else answer


def clean_punctuation(text: str) -> str:
    """`text` without the punctuation that does not count.

    A mark disappears when it stands beside a space anywhere, or when the text has a number such as
    1,000; otherwise it becomes a space. Full stops disappear unless a digit follows.
    """
    without_gap = _THOUSANDS.search(text) is not None
    cleaned = text
    for mark in filter(text.__contains__, _PUNCTUATION):
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or without_gap else " ")
    return _FULL_STOP.sub("", cleaned, count=_FULL_STOPS_REMOVED)


def clean_words(text: str) -> str:
    """`text` in lower case, numbers up to ten as digits, no articles, apostrophes put back."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(text: str) -> str:
    """`clean_words` of `clean_punctuation`, white space cleaned first."""
    return clean_words(clean_punctuation(_clean_space(text)))


def vqa_accuracy(
    prediction: str, answers: Answers, version: str = "2021", few: str = "official"
) -> float:
    """Accuracy of one answer, 0 to 1.

    Args:
        answers: the annotators' answers: strings, or the official objects with ``answer`` (and
            ``answer_id``, ``answer_confidence``). Objects that are equal in all they say count as
            one annotator, as in the official script; strings are one annotator each.
        version: "2021" or "2017"; see the module.
        few: what happens with fewer than four answers, where no answer could get 1 by the official
            rule. "scaled": each annotator counts, an answer needs ``min(3, n - 1)`` agreeing ones,
            and a single answer is to be met exactly, both sides normalised.

    Raises:
        ValueError: no answers, something other than text among them, or an unknown option.
    """
    if version not in VERSIONS:
        raise ValueError(f"version: expected {' or '.join(VERSIONS)}, saw {version!r}")
    if few not in FEW:
        raise ValueError(f"few: expected {' or '.join(FEW)}, saw {few!r}")
    if not isinstance(prediction, str):
        raise ValueError(f"the prediction must be a string, saw {prediction!r}")
    given = _annotators(answers)
    scaled = few == "scaled" and len(given) < 4
    if scaled and len(given) == 1:
        return float(normalize_answer(prediction) == normalize_answer(given[0][0]))
    needed = min(3, len(given) - 1) if scaled else 3
    if scaled:
        given = [(text, n) for n, (text, _) in enumerate(given)]
    current = version == "2021"
    if current:
        given = [(_clean_space(text), who) for text, who in given]
    prediction = _clean_space(prediction)
    unanimous = len({text for text, _ in given}) == 1
    if not unanimous:
        clean = normalize_answer if current else clean_punctuation
        given = [(clean(text), who) for text, who in given]
    if not (current and unanimous):
        prediction = normalize_answer(prediction)
    agree = [annotator for annotator in given if annotator[0] == prediction]
    # Leaving an annotator out takes away all that are equal to him.
    scores = [min(1.0, (len(agree) - agree.count(left_out)) / needed) for left_out in given]
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class VQAScores:
    """Accuracies in percent: of all questions, by type, and of each (by ``question_id``)."""

    overall: float
    by_answer_type: dict[str, float]
    by_question_type: dict[str, float]
    by_question: dict[Any, float]


def vqa_scores(
    results: Any, annotations: Any, version: str = "2021", few: str = "official"
) -> VQAScores:
    """Score a result file against annotations, both as the VQA server has them.

    Args:
        results: list of ``{"question_id", "answer"}``, one for each annotation.
        annotations: list of ``{"question_id", "answers"}``, with or without ``answer_type`` and
            ``question_type``.
        version, few: of `vqa_accuracy`.

    Raises:
        ValueError: a malformed entry, an answer too few, too many or twice; names the question.
    """
    truth = rows_by_id(annotations, "annotation", "question_id", "answers")
    answers = answers_by_id(results, truth)
    scores: dict[Any, float] = {}
    groups: dict[str, dict[str, list[float]]] = {"answer_type": {}, "question_type": {}}
    for question, annotation in truth.items():
        try:
            score = 100.0 * vqa_accuracy(answers[question], annotation["answers"], version, few)
        except ValueError as error:
            raise ValueError(f"question_id {question!r}: {error}") from error
        scores[question] = score
        for kind, group in groups.items():
            if annotation.get(kind) is not None:
                group.setdefault(str(annotation[kind]), []).append(score)
    return VQAScores(
        overall=_mean(list(scores.values())),
        by_answer_type={name: _mean(group) for name, group in groups["answer_type"].items()},
        by_question_type={name: _mean(group) for name, group in groups["question_type"].items()},
        by_question=scores,
    )


def _annotators(answers: Answers) -> list[tuple[str, Any]]:
    """(answer, what else tells the annotator from others) of each."""
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not len(answers):
        raise ValueError(f"expected at least one annotator's answer, saw {answers!r}")
    found: list[tuple[str, Any]] = []
    for n, answer in enumerate(answers):
        text = answer.get("answer") if isinstance(answer, Mapping) else answer
        if not isinstance(text, str):
            raise ValueError(
                f"answers[{n}]: expected a text, or an object with one, saw {answer!r}"
            )
        rest: Any = n
        if isinstance(answer, Mapping):
            rest = tuple(sorted((str(k), str(v)) for k, v in answer.items() if k != "answer"))
        found.append((text, rest))
    return found


def _clean_space(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
