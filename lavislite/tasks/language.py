"""Language models on text alone: are questions about a description answered from it?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lavislite.common import catalog
from lavislite.tasks.base import Row, Task


@catalog.tasks.register("language_modelling")
class LanguageModellingTask(Task):
    """Share of questions answered right, with the description and (``acc_blind``) without it.

    Models offer ``answer(samples, with_context) -> answers per document``.
    """

    name = "language_modelling"
    evaluations = ("text_questions",)
    default_monitor = "acc"

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        seen, blind = model.answer(samples), model.answer(samples, with_context=False)
        keys = ("context", "questions", "kinds", "answers")
        return [
            {**dict(zip(keys, row, strict=True)), "predicted": told, "predicted_blind": guessed}
            for *row, told, guessed in zip(
                *(samples[key] for key in keys), seen, blind, strict=True
            )
        ]

    def score(self, rows: list[Row], dataset: Any) -> dict[str, float]:  # noqa: ARG002
        """``acc``, ``acc_blind`` and ``acc_<kind of question>``, in percent."""
        right: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            parts = (row["kinds"], row["answers"], row["predicted"], row["predicted_blind"])
            for kind, answer, told, guessed in zip(*parts, strict=True):
                right["acc"].append(told == answer)
                right["acc_blind"].append(guessed == answer)
                right[f"acc_{kind.replace(' ', '_')}"].append(told == answer)
        return {name: 100.0 * sum(values) / len(values) for name, values in right.items()}

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        """One line per kind of question, one block per split."""
        table: list[list[str]] = []
        for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "acc"]:
            table.append([path.removesuffix("acc").rstrip("/") or "questions", "right %"])
            table += [
                [key.removeprefix(path).lstrip("_") or "all", f"{value:.1f}"]
                for key, value in metrics.items()
                if key.startswith(path)
            ]
        return table
