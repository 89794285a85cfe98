"""Several labels per image: how often each attribute is right."""

from __future__ import annotations

from typing import Any

from lavislite.common import catalog
from lavislite.tasks.base import Row, Task


@catalog.tasks.register("multilabel_classification")
class MultilabelClassificationTask(Task):
    """Accuracy per attribute; models offer ``accuracy(samples) -> {attribute: [B] in 0..1}``."""

    name = "multilabel_classification"
    evaluations = ("multilabel",)
    default_monitor = "acc_mean"

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        loss = float(model(samples)["loss"])
        correct = {key: value.float().tolist() for key, value in model.accuracy(samples).items()}
        return [
            {"loss": loss, "correct": {key: values[b] for key, values in correct.items()}}
            for b in range(len(samples["index"]))
        ]

    def score(self, rows: list[Row], dataset: Any) -> dict[str, float]:  # noqa: ARG002
        """``acc_<attribute>`` in percent, their mean ``acc_mean``, and the mean ``loss``."""
        n = len(rows)
        accuracy = {
            f"acc_{name}": 100.0 * sum(row["correct"][name] for row in rows) / n
            for name in rows[0]["correct"]
        }
        mean = sum(accuracy.values()) / len(accuracy)
        return {**accuracy, "acc_mean": mean, "loss": sum(row["loss"] for row in rows) / n}

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        """One line per attribute, one block per split."""
        table: list[list[str]] = []
        for path in [key for key in metrics if key.rsplit("/", 1)[-1] == "acc_mean"]:
            start = path.removesuffix("mean")  # "<dataset>/<split>/acc_"
            table.append([start.removesuffix("acc_").rstrip("/") or "attribute", "accuracy %"])
            table += [
                [name.removeprefix(start), f"{value:.1f}"]
                for name, value in metrics.items()
                if name.startswith(start)
            ]
        return table
