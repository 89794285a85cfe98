"""Real stage-2 models behind the tasks: neighbours in a batch and padding change no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common.evaluation import EvalContext
from lavislite.models.blip2.stage2 import Blip2LLM
from lavislite.tasks.aok_vqa import AOKVQAConfig, AOKVQATask
from lavislite.tasks.vqa import VQATask
from lavislite.tasks.vqa_config import VQAConfig
from tests.models.reference_stage2 import KINDS, reference_stage2, stage2_tensors

IMAGES = stage2_tensors("opt", "generate_tensors")["image"]
QUESTIONS = ["what is it", "two", "how many happy dogs eat near the small table of the old man"]
CHOICES = [
    ["red", "a small cat", "two happy dogs"],
    ["dog", "old man"],
    ["table", "a", "the", "eat"],
]


class Asked(torch.utils.data.Dataset):
    """Seven questions of very different lengths about four pictures."""

    name, split, evaluation, answer_list = "asked", "val", "aok_vqa", ["red", "a small cat", "two"]

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": IMAGES[i % 4], "text_input": QUESTIONS[i % 3], "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def record_id(self, i: int) -> str:
        return f"asked/val {i}"

    def annotation(self, i: int) -> dict[str, Any]:
        return {
            "question_id": i,
            "image_id": str(i % 4),
            "image": f"{i % 4}.jpg",
            "question": QUESTIONS[i % 3],
            "answers": ["red", "two", "a small cat"],
            "question_type": "",
            "answer_type": "",
            "details": {"choices": CHOICES[i % 3], "correct_choice_idx": 0},
        }


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blip2LLM:
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("language")
    return reference_stage2(request.param, folder).eval()


@pytest.mark.parametrize("method", ["generate", "rank"])
def test_answers_do_not_depend_on_the_batch(model: Blip2LLM, method: str) -> None:
    task = VQATask(VQAConfig(inference_method=method, num_beams=3, max_len=4, baselines=["blind"]))
    alone = task.evaluate(model, Asked(), EvalContext(batch_size=1))
    for size in (3, 7):
        together = task.evaluate(model, Asked(), EvalContext(batch_size=size))
        assert together.rows == alone.rows
        assert together.metrics == alone.metrics
    if method == "rank":
        assert {row["prediction"] for row in alone.rows} <= set(Asked.answer_list)


def test_choices_do_not_depend_on_the_batch(model: Blip2LLM) -> None:
    task = AOKVQATask(AOKVQAConfig(num_beams=2, max_len=3, num_ans_candidates=4))
    alone = task.evaluate(model, Asked(), EvalContext(batch_size=1))
    assert all(row["choice"] in CHOICES[row["index"] % 3] for row in alone.rows)
    for size in (3, 7):
        assert task.evaluate(model, Asked(), EvalContext(batch_size=size)).rows == alone.rows
