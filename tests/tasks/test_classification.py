"""Accuracy per attribute, whatever the number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavislite.common.errors import DataError
from lavislite.common.evaluation import EvalContext
from lavislite.common.schema import RunConfig
from lavislite.tasks.classification import MultilabelClassificationTask

from .fakes import FakeRetrieval, run_processes


class Attributes(FakeRetrieval):
    name, evaluation = "attributes", "multilabel"


class Guess(nn.Module):
    """Right about the colour of even images and the shape of the first four."""

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": samples["index"].float().mean()}

    def accuracy(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        return {"colour": samples["index"] % 2 == 0, "shape": samples["index"] < 4}


def evaluate(n: int = 10, broken: tuple[int, ...] = ()) -> dict[str, float]:
    task = MultilabelClassificationTask(RunConfig())
    return task.evaluate(Guess(), Attributes([1] * n, broken), EvalContext(batch_size=3)).metrics


def test_accuracies_are_percentages_with_their_mean_and_the_loss() -> None:
    assert evaluate() == pytest.approx(
        {"acc_colour": 50.0, "acc_shape": 40.0, "acc_mean": 45.0, "loss": 4.5}
    )


def test_accuracies_do_not_depend_on_the_number_of_processes() -> None:
    alone = evaluate()
    assert run_processes(2, evaluate) == [alone, alone]


def test_missing_predictions_are_refused_on_every_process() -> None:
    with pytest.raises(DataError, match=r"2 of 10 predictions are missing .*first: image id3"):
        evaluate(broken=(3, 7))
    for error in run_processes(2, lambda: evaluate(broken=(3, 7))):
        assert isinstance(error, DataError)


def test_more_processes_than_batches() -> None:
    assert run_processes(3, lambda: evaluate(4)) == [evaluate(4)] * 3


def test_the_summary_lists_the_attributes() -> None:
    task = MultilabelClassificationTask(RunConfig())
    assert task.default_monitor == "acc_mean"
    assert task.higher_is_better("x/val/acc_mean")
    table = task.summary({f"x/val/{name}": value for name, value in evaluate().items()})
    assert table[0][0] == "x/val"
    assert ["colour", "50.0"] in table
    assert ["mean", "45.0"] in table
    assert torch.is_grad_enabled()
