"""GQA: is the answer right, and how sensible are the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lavislite.common import catalog
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext
from lavislite.common.io import read_json, require_path
from lavislite.common.logging import get_logger
from lavislite.common.schema import RunConfig
from lavislite.common.together import on_main
from lavislite.common.transfer import fetch
from lavislite.metrics.gqa import gqa_match, gqa_scores
from lavislite.tasks.answers import Measure, Types, accuracy_table, has_answers
from lavislite.tasks.base import Row, split_name
from lavislite.tasks.baselines import answer_counts
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig

logger = get_logger(__name__)

FILES = ("choices", "scene_graphs", "attention")
SENSE = ("validity", "plausibility", "consistency", "grounding", "distribution")


@dataclass
class GQAConfig(VQAConfig):
    """As `VQAConfig`, and what the official script can look at beside the answers.

    Attributes:
        choices: the official file of valid and plausible answers; for `validity`, `plausibility`.
        scene_graphs: the official scene graphs; with `attention`, for `grounding`.
        attention: JSON with the attention map of each question, as the official script reads it.
        consistency: compute it; the split must then hold all questions, not the balanced ones only.
    """

    task: str = "gqa"
    choices: str | None = None
    scene_graphs: str | None = None
    attention: str | None = None
    consistency: bool = False

    def check(self) -> None:
        super().check()
        if (self.scene_graphs is None) != (self.attention is None):
            given, missing = ("attention", "scene_graphs")
            if self.attention is None:
                given, missing = missing, given
            raise ConfigError(
                f"run.{missing}: grounding needs it beside run.{given}. Set both or none."
            )


@catalog.tasks.register("gqa")
class GQATask(VQATask):
    """``acc`` by LAVIS's rule (both sides normalised), ``acc_exact`` by the official one.

    Where the records say so, only balanced questions count, and ``acc`` is told apart by binary and
    open questions and by structural and semantic type. The official script's other figures come
    with the files that they need; of ``distribution``, less is better. Of several annotators'
    answers the most frequent is the right one.
    """

    Config: ClassVar[type[RunConfig]] = GQAConfig
    name = "gqa"
    evaluations = ("gqa", "vqa")
    types: ClassVar[tuple[Types, ...]] = (
        Types("perForm", lambda row: _form(row)),
        Types("perStructuralType", lambda row: _type(row, "structural")),
        Types("perSemanticType", lambda row: _type(row, "semantic")),
    )
    cfg: GQAConfig

    def higher_is_better(self, metric: str) -> bool:
        return metric.rsplit("/", 1)[-1] != "distribution" and super().higher_is_better(metric)

    def check(self, dataset: Any) -> None:
        super().check(dataset)
        for key in FILES:
            path = getattr(self.cfg, key)
            if path is not None and "://" not in path:
                require_path(path, f"run.{key}")
        first = dataset.annotation(0)
        if has_answers(first) and not _is_official(first):
            self._refuse_files(dataset)

    def measures(self) -> list[Measure]:
        return [
            Measure(lambda answer, row: float(gqa_match(answer, _right(row))), counts=_counts),
            Measure(
                lambda answer, row: float(answer == _right(row)), suffix="exact", counts=_counts
            ),
        ]

    def finish(
        self, rows: list[Row], dataset: Any, ctx: EvalContext, metrics: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        server = [
            {"questionId": str(row["question_id"]), "prediction": row["prediction"]} for row in rows
        ]
        files: dict[str, Any] = {"leaderboard": server}
        if not metrics:
            return metrics, files
        if not all(_is_official(row) for row in rows):
            self._refuse_files(dataset)
            return metrics, files
        # A rehearsal has not all the questions that a right answer entails.
        consistency = self.cfg.consistency and ctx.limit_batches is None
        official = on_main(lambda: self._official(rows, dataset, consistency))
        found = {name: official[name] for name in SENSE if official[name] is not None}
        return metrics | found, {**files, "accuracy": {"official": official}}

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        return accuracy_table(metrics, extras=SENSE)

    def _official(self, rows: Sequence[Row], dataset: Any, consistency: bool) -> dict[str, Any]:
        """The official script's figures, without those of each question."""
        contents = {key: self._content(key) for key in FILES}
        try:
            scores = gqa_scores(
                {str(row["question_id"]): row["prediction"] for row in rows},
                {str(row["question_id"]): _record(row) for row in rows},
                choices=contents["choices"],
                scene_graphs=contents["scene_graphs"],
                attention=_by_question(contents["attention"]),
                consistency=consistency,
            )
        except ValueError as error:
            raise DataError(f"{split_name(dataset)}: {error}") from error
        found = asdict(scores)
        del found["by_question"]
        return found

    def _content(self, key: str) -> Any:
        path = getattr(self.cfg, key)
        return None if path is None else read_json(fetch(path))

    def _refuse_files(self, dataset: Any) -> None:
        """Raise ConfigError when more was asked for than the records can tell."""
        for key in (*FILES, "consistency"):
            if getattr(self.cfg, key):
                raise ConfigError(
                    f"run.{key}: {split_name(dataset)} has no official GQA records (with `types`, "
                    "`isBalanced`, ...), which this needs. Use the official question files."
                )


def _by_question(attention: Any) -> Any:
    """Attention by question id, from the official list of ``{"questionId", "attention"}`` too."""
    if not isinstance(attention, list):
        return attention
    wrong = [e for e in attention if not isinstance(e, Mapping) or "questionId" not in e]
    if wrong:
        raise DataError(f"run.attention: expected objects with questionId, saw {wrong[0]!r:.60}")
    return {str(entry["questionId"]): entry.get("attention") for entry in attention}


def _record(row: Row) -> dict[str, Any]:
    """The official record of a question."""
    known = {"answer": _right(row), "question": row["question"], "imageId": row["image_id"]}
    return {**row["details"], **known}


def _is_official(row: Row) -> bool:
    details = row.get("details", {})
    return has_answers(row) and "types" in details and "isBalanced" in details


def _counts(row: Row) -> bool:
    return has_answers(row) and row.get("details", {}).get("isBalanced", True)


def _right(row: Row) -> str:
    return answer_counts(row["answers"])[0][0]


def _type(row: Row, kind: str) -> str:
    types = row.get("details", {}).get("types")
    return (types.get(kind) or "") if isinstance(types, Mapping) else ""


def _form(row: Row) -> str:
    structural = _type(row, "structural")
    return structural and ("open" if structural == "query" else "binary")
