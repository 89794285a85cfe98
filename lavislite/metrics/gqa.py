"""GQA: was the answer given, by LAVIS's rule and by the official script's.

`gqa_match` is LAVIS's rule, which the tasks use: both sides are normalised as VQA answers are.
`gqa_scores` is the official script: strings must be equal to the letter, only balanced questions
count, and beside the accuracy it looks at whether the answers make sense.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lavislite.metrics.gqa_grounding import Question, grounding_score, value_at
from lavislite.metrics.results import check_ids
from lavislite.metrics.vqa import clean_punctuation, clean_words

K = TypeVar("K", str, int)

# What questions about an attribute that two things share ("Common") are answered with.
_SHARED = ("color", "material", "shape")
_NO_STEPS = ("exist", "query: name", "choose name")  # operations that do not count as a step


@dataclass(frozen=True)
class GQAScores:
    """Percentages over the balanced questions; None where a figure cannot be computed.

    Attributes:
        accuracy: the answer is right. `open` (structural type "query") and `binary` are its parts.
        validity: the answer is one that the question allows (a colour for "what colour").
        plausibility: the answer occurs in the world for such a thing. Both need `choices`.
        consistency: of the questions that a right answer entails, how many are right as well.
        grounding: attention on the regions that question and full answer speak of.
        distribution: chi-square distance between right and given answers; lower is better, and no
            percentage.
        by_structural, by_semantic, by_steps, by_length: accuracy and number of questions of each
            type, number of reasoning steps, number of words.
        by_question: 100 or 0 of each balanced question.
    """

    accuracy: float
    binary: float | None
    open: float | None
    validity: float | None
    plausibility: float | None
    consistency: float | None
    grounding: float | None
    distribution: float | None
    by_structural: dict[str, tuple[float, int]]
    by_semantic: dict[str, tuple[float, int]]
    by_steps: dict[int, tuple[float, int]]
    by_length: dict[int, tuple[float, int]]
    by_question: dict[str, float]


def gqa_match(prediction: str, answer: str) -> bool:
    """Whether two answers are the same by LAVIS's rule.

    Case, punctuation, articles and the spelling of small numbers do not count. An answer that is
    an article only is an empty one.
    """
    return _normal(prediction) == _normal(answer)


def gqa_scores(
    predictions: Mapping[str, str],
    questions: Mapping[str, Question],
    *,
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    scene_graphs: Mapping[str, Mapping[str, Any]] | None = None,
    attention: Mapping[str, Any] | None = None,
    consistency: bool = False,
    object_features: bool = False,
) -> GQAScores:
    """Score answers as the official script does.

    Args:
        predictions: question id to answer. Needed for every balanced question, and with
            `consistency` for all questions. Ids that are no question's are refused.
        questions: question id to official record (``answer``, ``isBalanced``, ``types``, ...).
        choices: question id to ``{"valid": [...], "plausible": [...]}``.
        scene_graphs: image id to official scene graph; with `attention`, for `grounding`.
        attention: question id to a square map (7 x 7 officially), ``map[i][j]`` the weight of the
            cell in column i and row j; with `object_features`, to a list of
            ``[x0, y0, x1, y1, weight]`` in fractions of the image.
        consistency: compute it; `questions` must hold the entailed ones too.

    Raises:
        ValueError: names the question and what is wrong with its record, answer, choices, scene
            graph or attention.
    """
    balanced = _check(predictions, questions, everyone=consistency)
    right = {key: predictions[key] == questions[key]["answer"] for key in balanced}
    is_open = {
        key: value_at(key, questions[key], "types", "structural", kind=str) == "query"
        for key in balanced
    }

    grounding = None
    if scene_graphs is not None and attention is not None:
        grounding = _percent(
            grounding_score(
                key, questions[key], scene_graphs, attention, object_features=object_features
            )
            for key in balanced
        )
    elif scene_graphs is not None or attention is not None:
        raise ValueError("grounding needs attention and scene graphs; only one of them was given")

    def table(group: Callable[[str, Question], K]) -> dict[K, tuple[float, int]]:
        return _table(right, {key: group(key, questions[key]) for key in balanced})

    return GQAScores(
        accuracy=100.0 * (sum(right.values()) / len(right)),
        binary=_percent(right[key] for key in balanced if not is_open[key]),
        open=_percent(right[key] for key in balanced if is_open[key]),
        validity=_among(predictions, questions, balanced, choices, "valid"),
        plausibility=_among(predictions, questions, balanced, choices, "plausible"),
        consistency=_consistency(predictions, questions, right) if consistency else None,
        grounding=grounding,
        distribution=_distribution(predictions, questions, balanced),
        by_structural=table(lambda key, q: value_at(key, q, "types", "structural", kind=str)),
        by_semantic=table(lambda key, q: value_at(key, q, "types", "semantic", kind=str)),
        by_steps=table(_steps),
        by_length=table(lambda key, q: len(value_at(key, q, "question", kind=str).split())),
        by_question={key: 100.0 * hit for key, hit in right.items()},
    )


def _check(
    predictions: Mapping[str, str], questions: Mapping[str, Question], *, everyone: bool
) -> list[str]:
    """Ids of the balanced questions, after everything that all figures need was found."""
    for name, given in (("predictions", predictions), ("questions", questions)):
        if not isinstance(given, Mapping):
            raise ValueError(
                f"{name}: expected an object by question id, saw {type(given).__name__}"
            )
    balanced = [key for key in questions if value_at(key, questions[key], "isBalanced", kind=bool)]
    if not balanced:
        raise ValueError("none of the questions is balanced (`isBalanced`), and only those count")
    required = questions if everyone else balanced
    check_ids(predictions, questions, "questionId", required=required)
    for key in required:
        value_at(key, questions[key], "answer", kind=str)
        if not isinstance(predictions[key], str):
            raise ValueError(
                f"question {key!r}: the prediction must be a string, saw {predictions[key]!r}"
            )
    return balanced


def _among(
    predictions: Mapping[str, str],
    questions: Mapping[str, Question],
    balanced: Sequence[str],
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None,
    name: str,
) -> float | None:
    """How often the answer is among a question's choices of this name."""
    if choices is None:
        return None
    hits: list[bool] = []
    for key in balanced:
        if key not in choices:
            raise ValueError(f"question {key!r} has no entry among the choices")
        allowed: Sequence[str] = value_at(key, choices[key], name, kind=list)
        if "Common" in value_at(key, questions[key], "types", "detailed", kind=str):
            allowed = _SHARED
        hits.append(predictions[key] in allowed)
    return _percent(hits)


def _consistency(
    predictions: Mapping[str, str], questions: Mapping[str, Question], right: Mapping[str, bool]
) -> float | None:
    """Of each right answer, the share of the questions it entails that are right; their mean."""
    shares: list[float] = []
    for key in (key for key, hit in right.items() if hit):
        entailed = [
            other for other in value_at(key, questions[key], "entailed", kind=list) if other != key
        ]
        for other in entailed:
            if not isinstance(other, str) or other not in questions:
                raise ValueError(
                    f"question {key!r} entails {other!r}, which is not among the questions; "
                    "consistency needs the file with all questions"
                )
        if entailed:
            hits = [predictions[other] == questions[other]["answer"] for other in entailed]
            shares.append(sum(hits) / len(hits))
    return _percent(shares)


def _distribution(
    predictions: Mapping[str, str], questions: Mapping[str, Question], balanced: Sequence[str]
) -> float | None:
    gold: dict[str, Counter[str]] = {}
    given: dict[str, Counter[str]] = {}
    for key in balanced:
        if questions[key].get("groups") is None:
            continue
        if value_at(key, questions[key], "groups", kind=dict).get("global") is not None:
            group = value_at(key, questions[key], "groups", "global", kind=str)
            gold.setdefault(group, Counter())[questions[key]["answer"]] += 1
            given.setdefault(group, Counter())[predictions[key]] += 1
    if not gold:
        return None
    total = 0.0
    for group, expected in gold.items():
        distance = sum((given[group][answer] - n) ** 2 / n for answer, n in expected.items())
        total += distance * expected.total()
    return total / sum(counts.total() for counts in gold.values()) / 100


def _steps(key: str, question: Question) -> int:
    steps = (
        f"{value_at(key, step, 'operation')}: {value_at(key, step, 'argument')}"
        for step in value_at(key, question, "semantic", kind=list)
    )
    return sum(not any(name in step for name in _NO_STEPS) for step in steps)


def _table(right: Mapping[str, bool], groups: Mapping[str, K]) -> dict[K, tuple[float, int]]:
    hits: dict[K, list[bool]] = {}
    for key, group in groups.items():
        hits.setdefault(group, []).append(right[key])
    return {group: (100.0 * (sum(each) / len(each)), len(each)) for group, each in hits.items()}


def _percent(values: Iterable[float]) -> float | None:
    found = list(values)
    return 100.0 * (sum(found) / len(found)) if found else None


def _normal(text: str) -> str:
    return clean_words(clean_punctuation(text))
