"""Questions about one picture share it: decoded once, looked at once, and answered as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.errors import DataError
from lavislite.common.evaluation import EvalContext
from lavislite.models.blip2.stage2 import Blip2LLM
from lavislite.tasks.aok_vqa import AOKVQAConfig, AOKVQATask
from lavislite.tasks.pictures import question_batches, with_pictures
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig
from tests.models.reference_stage2 import KINDS, reference_stage2, stage2_tensors

from .fakes import run_processes
from .question_parts import BASELINES, Answerer, Questions

IMAGES = stage2_tensors("opt", "generate_tensors")["image"]
TEXTS = ["what is it", "two", "how many happy dogs eat near the table", "red", "a small cat"]
CHOICES = [["red", "a small cat"], ["dog", "old man", "two"], []]


class Shared(Questions):
    """`Questions` that tell pictures apart; counts what is decoded."""

    def __init__(self, *args: Any, broken: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.broken, self.decoded = broken, list[int]()

    def question(self, i: int) -> dict[str, Any]:
        return {"text_input": self.annotation(i)["question"], "index": i}

    def file_number(self, i: int) -> int:
        return i // 2

    def load_image(self, i: int) -> torch.Tensor | None:
        self.decoded.append(i // 2)
        return None if i // 2 == self.broken else torch.full((3, 2, 2), float(i // 2))

    def by_picture(self) -> list[list[int]]:
        return [[2 * k, 2 * k + 1] for k in reversed(range(self.pictures))]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)


class Asked(torch.utils.data.Dataset):
    """Eleven questions about four pictures, the first of which has eight."""

    name, split, evaluation, answer_list = "asked", "val", "aok_vqa", ["red", "a small cat", "two"]
    numbers = [0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 0]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.load_image(i), **self.question(i)}

    def load_image(self, i: int) -> torch.Tensor:
        return IMAGES[self.numbers[i]]

    def question(self, i: int) -> dict[str, Any]:
        return {"text_input": TEXTS[i % 5], "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def record_id(self, i: int) -> str:
        return f"asked/val {i}"

    def annotation(self, i: int) -> dict[str, Any]:
        return {
            "question_id": i, "image_id": str(self.numbers[i]), "image": f"{self.numbers[i]}.jpg",
            "question": TEXTS[i % 5], "answers": ["red", "two"], "question_type": "",
            "answer_type": "", "details": {"choices": CHOICES[i % 3], "correct_choice_idx": 0},
        }  # fmt: skip


class AskedByPicture(Asked):
    def file_number(self, i: int) -> int:
        return self.numbers[i]

    def by_picture(self) -> list[list[int]]:
        return [[i for i, n in enumerate(self.numbers) if n == k] for k in range(4)]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blip2LLM:
    folder: Path = tmp_path_factory.mktemp("language")
    return reference_stage2(request.param, folder).eval()


def looked_at(model: Blip2LLM) -> tuple[list[int], Any]:
    """How many pictures each pass of the tower saw, and what ends the watch."""
    passes: list[int] = []
    hook = model.visual_encoder.register_forward_pre_hook(lambda _, x: passes.append(len(x[0])))
    return passes, hook


@pytest.mark.parametrize("what", ["generate", "rank", "choices"])
def test_the_same_answers_with_fewer_passes_of_the_tower(model: Blip2LLM, what: str) -> None:
    options: dict[str, Any] = {"num_beams": 2, "max_len": 3, "baselines": ["other_image", "blind"]}
    task = VQATask(VQAConfig(inference_method=what, **options)) if what != "choices" else None
    task = task or AOKVQATask(AOKVQAConfig(**options))
    found = {}
    for dataset in (Asked(), AskedByPicture()):
        passes, hook = looked_at(model)
        result = task.evaluate(model, dataset, EvalContext(batch_size=6))
        hook.remove()
        found[type(dataset)] = result, passes
    (plain, often), (shared, seldom) = found[Asked], found[AskedByPicture]
    assert shared.rows == plain.rows
    assert shared.metrics == plain.metrics
    # Two batches. For each question its picture and another one; again, where it has choices.
    assert sum(often) == {"generate": 22, "rank": 22, "choices": 22 + 16}[what]
    # Six questions about picture 0; then its other two, and one about each other picture.
    assert seldom[::2] == [1, 4]
    assert len(seldom) == 4
    assert max(seldom) <= len(IMAGES)


def test_batches_keep_the_questions_of_a_picture_together() -> None:
    assert question_batches(AskedByPicture(), 6) == [[0, 2, 3, 5, 6, 8], [9, 10, 1, 4, 7]]
    assert question_batches(Shared(4), 5) == [[6, 7, 4, 5], [2, 3, 0, 1]]
    assert question_batches(Shared(4), 1) == [[i] for i in (6, 7, 4, 5, 2, 3, 0, 1)]
    # A rehearsal asks what it would without sharing: the first questions.
    assert question_batches(Shared(4), 3, limit=1) == [[2, 0, 1]]
    assert question_batches(Questions(4), 5) == [[0, 1, 2, 3, 4], [5, 6, 7]]


def test_a_batch_holds_each_picture_once() -> None:
    dataset = Shared(6)
    loading = with_pictures(dataset, others=True)
    batch = loading.collate(loading.__getitems__([5, 0, 4, 1]))
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0]
    assert batch["image_index"].tolist() == [0, 1, 0, 1]
    assert batch["other_image"][:, 0, 0, 0].tolist() == [5, 3]
    assert batch["other_image_index"].tolist() == [0, 1, 0, 1]
    assert batch["text_input"] == ["odd?", "colour?", "colour?", "odd?"]
    assert sorted(dataset.decoded) == [0, 2, 3, 5]
    assert loading.collate([None]) == {}


def test_a_model_that_shares_nothing_gets_a_picture_for_each_question() -> None:
    def metrics(dataset: Any) -> dict[str, float]:
        task = VQATask(VQAConfig(baselines=BASELINES))
        return task.evaluate(Answerer(), dataset, EvalContext(batch_size=5)).metrics

    alone = metrics(Questions(7))
    assert metrics(Shared(7)) == alone
    assert run_processes(2, lambda: metrics(Shared(7))) == [alone, alone]


def test_rows_come_in_the_order_of_the_questions() -> None:
    result = VQATask(VQAConfig()).evaluate(Answerer(), Shared(5), EvalContext(batch_size=4))
    assert [row["index"] for row in result.rows] == list(range(10))
    assert [row["question_id"] for row in result.rows] == [100 + i for i in range(10)]


def test_an_unreadable_picture_is_named_by_its_first_question() -> None:
    with pytest.raises(DataError, match=r"2 of 10 predictions are missing \(first: questions/val"):
        VQATask(VQAConfig()).evaluate(Answerer(), Shared(5, broken=3), EvalContext(batch_size=4))
