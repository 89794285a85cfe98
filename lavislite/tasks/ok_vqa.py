"""Questions that need knowledge: VQA accuracy of the answers as they are, and in basic form."""

from __future__ import annotations

from typing import Any, ClassVar

from lavislite.common import catalog
from lavislite.common.errors import UserError
from lavislite.common.evaluation import EvalContext
from lavislite.common.schema import RunConfig
from lavislite.metrics.lemmas import lemmatize
from lavislite.tasks.answers import Measure, vqa_score
from lavislite.tasks.base import Row
from lavislite.tasks.vqa import VQATask, server_answers
from lavislite.tasks.vqa_config import VQAConfig


@catalog.tasks.register("ok_vqa")
class OKVQATask(VQATask):
    """VQA accuracy ``acc``, and ``acc_lemmatized`` with nouns and verbs in their basic form.

    The annotators' answers are in that form, so papers lemmatise what the model says (BLIP-2:
    ``apply_lemmatizer``). Both figures are always reported, and both kinds of answers kept for the
    server: ``answers`` and ``answers_lemmatized``.

    Raises:
        UserError: the package for the basic forms is not installed.
    """

    Config: ClassVar[type[RunConfig]] = VQAConfig
    name = "ok_vqa"
    evaluations = ("ok_vqa", "vqa")

    def __init__(self, cfg: VQAConfig) -> None:
        super().__init__(cfg)
        try:
            lemmatize("dogs")
        except ImportError as error:
            raise UserError(f"Task 'ok_vqa': {error}") from error

    def measures(self) -> list[Measure]:
        score = vqa_score(self.cfg.vqa_accuracy)
        lemmatized = Measure(lambda answer, row: score(lemmatize(answer), row), suffix="lemmatized")
        return [*super().measures(), lemmatized]

    def finish(
        self, rows: list[Row], dataset: Any, ctx: EvalContext, metrics: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        metrics, files = super().finish(rows, dataset, ctx, metrics)
        for row in rows:
            row["prediction_lemmatized"] = lemmatize(row["prediction"])
        return metrics, {
            **files,
            "answers_lemmatized": server_answers(rows, "prediction_lemmatized"),
        }
