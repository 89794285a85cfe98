"""Questions about numbered pictures, and a model that sees the number."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COLOURS = ["red", "green", "blue"]
BASELINES = ["majority", "blind", "other_image", "caption"]


class Questions(torch.utils.data.Dataset):
    """Two questions about each picture k: what colour it has (k mod 3), and whether it is odd."""

    name, split, evaluation = "questions", "val", "vqa"
    answer_list = ["yes", "no", *COLOURS]

    def __init__(self, pictures: int = 6, *, answered: bool = True) -> None:
        self.pictures, self.answered = pictures, answered

    def __len__(self) -> int:
        return 2 * self.pictures

    def __getitem__(self, i: int) -> dict[str, Any]:
        question = self.annotation(i)["question"]
        return {"image": torch.full((3, 2, 2), i // 2.0), "text_input": question, "index": i}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([s["image"] for s in samples]).floor(),
            "text_input": [s["text_input"] for s in samples],
            "index": torch.tensor([s["index"] for s in samples]),
        }

    def record_id(self, i: int) -> str:
        return f"questions/val question {i}"

    def annotation(self, i: int) -> dict[str, Any]:
        picture, kind = i // 2, i % 2
        answer = ["no", "yes"][picture % 2] if kind else COLOURS[picture % 3]
        return {
            "question_id": 100 + i,
            "image_id": str(picture),
            "image": f"{picture}.jpg",
            "question": "odd?" if kind else "colour?",
            "answers": [answer] * 7 + ["what"] * 3 if self.answered else [],
            "question_type": "is it" if kind else "what",
            "answer_type": "yes/no" if kind else "other",
        }

    def true_caption(self, i: int) -> str:
        return f"a {COLOURS[i // 2 % 3]} thing."


class Answerer(nn.Module):
    """Sees the picture's number in its pixels; without one, reads the caption or says red or no."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[str], bool, dict[str, Any]]] = []
        self.bare: list[list[str]] = []

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        texts = samples["text_input"]
        self.bare.append(samples["question"])
        self.asked.append((texts, "image" in samples, options))
        if "image" not in samples:
            return [
                "no"
                if "odd?" in text
                else next((c for c in COLOURS if c in text.split("Question")[0]), "red")
                for text in texts
            ]
        numbers = samples["image"][:, 0, 0, 0].long().tolist()
        return [
            ["no", "yes"][n % 2] if "odd?" in text else COLOURS[n % 3]
            for n, text in zip(numbers, texts, strict=True)
        ]

    def forward(self, samples: dict[str, Any]) -> dict[str, Any]:
        return {"loss": torch.tensor(0.0), "seen": samples}
