"""Questions about texts: the share answered right, with the text and without it."""

from __future__ import annotations

from types import SimpleNamespace

from lavislite.common.evaluation import EvalContext
from lavislite.common.schema import RunConfig
from lavislite.datasets.playground.text import PlaygroundTextBuilder, PlaygroundTextConfig
from lavislite.tasks.language import LanguageModellingTask

TASK = LanguageModellingTask(RunConfig(task="language_modelling"))


def test_answers_are_counted_by_kind_with_and_without_the_text() -> None:
    rows = [
        {"kinds": ["color", "is there"], "answers": ["red", "no"], "predicted": ["red", "yes"],
         "predicted_blind": ["blue", "no"]},
        {"kinds": ["color"], "answers": ["blue"], "predicted": ["red"], "predicted_blind": ["red"]},
    ]  # fmt: skip
    scored = TASK.score(rows, SimpleNamespace())
    assert {name: round(value, 1) for name, value in scored.items()} == {
        "acc": 33.3, "acc_blind": 33.3, "acc_color": 50.0, "acc_is_there": 0.0
    }  # fmt: skip
    table = TASK.summary({f"text/val/{name}": value for name, value in scored.items()})
    assert table[:3] == [["text/val", "right %"], ["all", "33.3"], ["blind", "33.3"]]


def test_a_model_that_reads_scores_full_marks_and_a_blind_one_does_not() -> None:
    import torch

    class Reader(torch.nn.Module):
        """Knows the answers while it may see the text."""

        def answer(self, samples, with_context=True):
            answers = samples["answers"]
            return answers if with_context else [["?"] * len(row) for row in answers]

    cfg = PlaygroundTextConfig(num_train=4, num_val=5)
    dataset = PlaygroundTextBuilder(cfg, name="playground_text").build("val", train=False)
    result = TASK.evaluate(Reader(), dataset, EvalContext(batch_size=2))
    assert (result.metrics["acc"], result.metrics["acc_blind"]) == (100.0, 0.0)
    assert len(result.rows) == 5
