"""Stage 2 on one process or two: steps of training, then captions and answers of whole splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lavislite.common import distributed
from lavislite.common.evaluation import EvalContext
from lavislite.common.tensors import load_tensors
from lavislite.runners.strategy import make_strategy

CAPTIONS = ["a", "a red cat on the small table", "two dogs", "an old man eats near two happy dogs"]
QUESTIONS = ["what is it", "is the old man red", "two", "how many dogs eat on the table", "who"]


class Pictures(torch.utils.data.Dataset):
    """Five pictures, each with a caption and a question."""

    name, split, evaluation, domains = "five", "val", "vqa", {}
    image_ids = [f"picture {i}" for i in range(5)]
    image_paths = [f"{i}.jpg" for i in range(5)]

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def pictures(self) -> Pictures:
        return self

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "text_input": QUESTIONS[i], "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return torch.utils.data.default_collate(samples)

    def references(self, i: int) -> list[str]:
        return [QUESTIONS[i], "a red cat"]

    def record_id(self, i: int) -> str:
        return f"five/val {i}"

    def annotation(self, i: int) -> dict[str, Any]:
        known = {"question_type": "", "answer_type": "other", "answers": ["red", "two", "red"]}
        return {"question_id": i, "image_id": str(i), "image": "", "question": "", **known}


def run(kind: str, vision: Callable[[], torch.nn.Module], folder: Path) -> dict[str, Any]:
    """Rows and metrics of both tasks; then losses and weights of two steps with a batch of four.

    In this order, because weights that were trained differ by rounding, and words may with them.
    """
    from lavislite.models.blip2.weights import load_state
    from lavislite.models.language.base import build_language
    from tests.models.reference_stage2 import DATA, KINDS, stage2_config, stage2_tensors

    distributed.seed_everything(0)
    cfg = stage2_config(kind, folder / f"rank{distributed.rank()}", prompt="a photo of")
    model = KINDS[kind][0](cfg, vision=vision(), language=build_language(cfg.language)).train()
    state = load_tensors(DATA / f"lavis_{kind}" / "state.safetensors")
    trained = {name: t for name, t in state.items() if not name.startswith("visual_encoder.")}
    load_state(model, trained, "the reference's state")
    images = stage2_tensors("opt", "generate_tensors")["image"]
    seen = _evaluate(model, Pictures(torch.cat([images, -images[:1]])))
    return {
        **seen,
        "losses": _train(model, images),
        "weights": {n: t.detach().clone() for n, t in model.trainable_state_dict().items()},
    }


def _train(model: Any, images: torch.Tensor) -> list[float]:
    n = len(CAPTIONS) // distributed.world_size()
    own = slice(distributed.rank() * n, (distributed.rank() + 1) * n)
    batch = {"image": images[own], "text_input": CAPTIONS[own]}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    strategy = make_strategy(model, torch.device("cpu"))
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = strategy.model(batch)["loss"]
        loss.backward()
        optimizer.step()
        total = distributed.all_reduce_sum(loss.detach())
        losses.append((total / distributed.world_size()).item())
    return losses


def _evaluate(model: Any, dataset: Pictures) -> dict[str, Any]:
    from lavislite.common.generation import GenerationOptions
    from lavislite.tasks.captioner import Captioner
    from lavislite.tasks.vqa import VQAConfig, VQATask

    # Batches differ too: whole for one process, in twos for each of two.
    ctx = EvalContext(batch_size=5 if distributed.world_size() == 1 else 2)
    how = GenerationOptions(num_beams=3, max_new_tokens=6)
    written = Captioner(how, java=False).evaluate(model, dataset, ctx)
    baselines = ["blind", "other_image"]
    vqa = VQATask(VQAConfig(baselines=baselines, num_beams=2, max_len=4))
    answered = vqa.evaluate(model, dataset, ctx)
    return {
        "captions": written.rows,
        "caption_metrics": written.metrics,
        "answers": answered.rows,
        "answer_metrics": answered.metrics,
    }
