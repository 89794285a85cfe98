"""Held-out losses: fixed batches, fixed negatives, no trace left in training."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext
from lavislite.tasks.pretrain import ImageTextPretrainTask, PretrainConfig

from .fakes import FakeRanker, FakeRetrieval, run_processes


class Captions(torch.utils.data.Dataset):
    name, split, evaluation = "captions", "val", "loss"

    def __init__(self, n: int = 11) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = torch.full((3, 2, 2), float(i))
        return {"image": image, "text_input": f"text {i}", "image_id": i, "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([s["image"] for s in samples]),
            "text_input": [s["text_input"] for s in samples],
            "index": torch.tensor([s["index"] for s in samples]),
        }

    def record_id(self, i: int) -> str:
        return f"captions/val record {i}"


class Noisy(nn.Module):
    """Losses that depend on every source of randomness and on the company in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.seen: list[list[int]] = []

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        self.seen.append(samples["index"].tolist())
        own = torch.multinomial(torch.ones(50), 1).float()
        shared = torch.rand(1, generator=distributed.shared_generator())
        company = samples["image"].var(unbiased=False)
        noise = own + shared + random.random() + np.random.rand()
        noise = noise + self.drop(torch.ones(4)).sum()
        parts = {"loss_itc": company, "loss_itm": noise.squeeze()}
        return {"loss": sum(parts.values()), **parts, "sim": torch.rand(3)}


def task() -> ImageTextPretrainTask:
    return ImageTextPretrainTask(PretrainConfig())


def test_losses_are_means_over_samples_and_the_same_every_time() -> None:
    model, ctx = Noisy(), EvalContext(batch_size=4)
    first = task().evaluate(model, Captions(), ctx)
    torch.manual_seed(77)
    random.seed(77)
    assert task().evaluate(model, Captions(), ctx) == first
    assert set(first.metrics) == {"loss", "loss_itc", "loss_itm"}
    parts = [(row["samples"], row["loss_itm"]) for row in first.rows]
    assert [n for n, _ in parts] == [4, 4, 3]
    assert first.metrics["loss_itm"] == pytest.approx(sum(n * loss for n, loss in parts) / 11)
    assert len({loss for _, loss in parts}) == 3  # each batch has its own negatives


def test_every_record_is_seen_once_in_a_fixed_shuffle() -> None:
    model = Noisy()
    for _ in range(2):
        task().evaluate(model, Captions(), EvalContext(batch_size=4))
    assert model.seen[:3] == model.seen[3:]
    order = [i for batch in model.seen[:3] for i in batch]
    assert sorted(order) == list(range(11))
    assert order != sorted(order)


def test_losses_do_not_depend_on_the_number_of_processes() -> None:
    def evaluate() -> dict[str, float]:
        distributed.seed_everything(5, rank=distributed.rank())
        return task().evaluate(Noisy(), Captions(), EvalContext(batch_size=3)).metrics

    alone = evaluate()
    assert run_processes(2, evaluate) == [alone, alone]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_as_if_there_had_been_no_evaluation(workers: int) -> None:
    def draws() -> list[float]:
        shared = torch.rand(1, generator=distributed.shared_generator())
        return [float(torch.rand(1)), random.random(), float(np.random.rand()), float(shared)]

    model = Noisy()
    model.drop.eval()  # a frozen part: it must not wake up
    distributed.seed_everything(3)
    draws()
    expected = draws()
    distributed.seed_everything(3)
    draws()
    task().evaluate(model, Captions(), EvalContext(batch_size=4, num_workers=workers))
    assert draws() == expected
    assert model.training
    assert not model.drop.training


def test_states_come_back_even_after_an_error() -> None:
    class Broken(Noisy):
        def forward(self, _: dict[str, Any]) -> dict[str, Tensor]:
            raise RuntimeError("broken")

    model = Broken()
    torch.manual_seed(4)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(4))
    with pytest.raises(RuntimeError, match="broken"):
        task().evaluate(model, Captions(), EvalContext())
    assert torch.equal(torch.rand(2), expected)
    assert model.training


def test_a_dry_run_stops_after_its_batches() -> None:
    model = Noisy()
    task().evaluate(model, Captions(), EvalContext(batch_size=2, limit_batches=2))
    assert [len(batch) for batch in model.seen] == [2, 2]


def test_a_retrieval_split_is_scored_by_recall() -> None:
    result = task().evaluate(
        FakeRanker(torch.eye(3)[None], torch.eye(3)), FakeRetrieval([1, 1, 1]), EvalContext()
    )
    assert result.metrics["r_mean"] == 100.0


def test_the_monitor_follows_what_is_validated() -> None:
    assert task().monitor_for(["loss"]) == "loss"
    assert task().monitor_for(["loss", "retrieval"]) == "r_mean"
    assert not task().higher_is_better("a/val/loss")


def test_a_train_step_is_the_model_on_the_samples() -> None:
    samples = Captions().collate([Captions()[i] for i in range(3)])
    assert set(task().train_step(Noisy(), samples)) >= {"loss", "loss_itc", "loss_itm"}


def test_another_kind_of_dataset_and_an_empty_one_are_refused() -> None:
    other = Captions()
    other.evaluation = "multilabel"
    with pytest.raises(ConfigError, match=r"cannot evaluate captions/val.*'multilabel'"):
        task().evaluate(Noisy(), other, EvalContext())
    with pytest.raises(DataError, match="captions/val holds no records"):
        task().evaluate(Noisy(), Captions(0), EvalContext())


def test_examples_of_a_caption_split_show_picture_and_truth() -> None:
    class Talking(Noisy):
        def generate(self, samples: dict) -> list[str]:
            return ["a thing"] * len(samples["image"])

    shown = task().examples(Talking(), Captions(), EvalContext(), n=3)
    assert [row["truth"] for row in shown] == [["text 0"], ["text 3"], ["text 7"]]
    assert shown[0]["image"].shape == (2, 2, 3)
    assert shown[0]["generated"] == "a thing"


def test_the_summary_is_rectangular() -> None:
    names = [
        f"{p}{d}_r{k}" for p in ("", "itc_", "chance_") for d in ("txt", "img") for k in (1, 5, 10)
    ]
    names += ["r_mean", "itc_r_mean", "chance_r_mean"]
    metrics = {f"a/val/{name}": float(i) for i, name in enumerate(names)}
    table = task().summary({**metrics, "b/val/loss": 1.5, "b/val/loss_itc": 0.5})
    assert len({len(row) for row in table}) == 1
    assert [row[0] for row in table] == [
        "a/val", "re-ranked", "ITC", "chance", "b/val", "held-out loss",
    ]  # fmt: skip
    assert table[-1][1:3] == ["1.500", "0.500"]
    assert task().summary({}) == []
