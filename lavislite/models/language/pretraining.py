"""Trains the playground's language models, on text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common.errors import ConfigError
from lavislite.common.generation import GenerationOptions
from lavislite.common.io import atomic_write
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import check_bounds
from lavislite.models.base import BaseModel
from lavislite.models.language.base import LanguageConfig
from lavislite.models.language.causal import CausalLM
from lavislite.models.language.seq2seq import Seq2SeqLM
from lavislite.models.language.tiny import END, FAMILIES, make_model, make_tokenizer

QUESTION = "Question: {} Answer:"


@dataclass
class TinyLanguageConfig:
    """A small language model that learns from captions, questions and answers.

    family: "opt" (decoder only) or "t5" (encoder and decoder).
    answer_weight, question_weight: of their tokens in the loss of the decoder-only model, where
        those of a caption weigh 1.
    examples_per_document: of the encoder-decoder model, which reads one question at a time.
    """

    arch: str = "tiny_language_model"
    model_type: str | None = None
    family: str = "opt"
    width: int = 128
    layers: int = 3
    heads: int = 4
    vocabulary: int = 512
    answer_weight: float = 5.0
    question_weight: float = 0.2
    examples_per_document: int = 4

    def check(self) -> None:
        """Raise ConfigError naming the first value that cannot be."""
        if self.family not in FAMILIES:
            raise ConfigError(
                f"model.family: '{self.family}' is unknown.{did_you_mean(self.family, FAMILIES)} "
                f"Known: {', '.join(FAMILIES)}."
            )
        least = {"layers": 2, "heads": 4 if self.family == "opt" else 8, "width": 64}
        check_bounds("model", self, {key: (value, None) for key, value in least.items()})
        check_bounds("model", self, {"vocabulary": (300, None)})
        if self.width % self.heads:
            raise ConfigError(f"model.heads: {self.heads} does not divide width {self.width}.")


class TinyLanguageModel(BaseModel):
    """A `playground_opt` or `playground_t5` in the making.

    Samples are documents about a scene, see the dataset ``playground_text``: lists over the batch
    of ``context`` (a full description), ``caption``, ``questions`` and ``answers`` (lists each).
    """

    Config = TinyLanguageConfig

    def __init__(self, cfg: TinyLanguageConfig, texts: Iterable[str]) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        tokenizer = make_tokenizer(texts, cfg.family, cfg.vocabulary)
        model = make_model(
            cfg.family, width=cfg.width, layers=cfg.layers, heads=cfg.heads, size=cfg.vocabulary
        )
        adapter, end = (CausalLM, END) if cfg.family == "opt" else (Seq2SeqLM, None)
        options = LanguageConfig(name=f"playground_{cfg.family}", freeze=False, end=end)
        self.language: Any = adapter(model, tokenizer, options)
        self._ids: dict[str, list[int]] = {}

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> TinyLanguageModel:
        """The vocabulary comes from ``captions`` among `parts`, the training texts."""
        return cls(cfg, parts.get("captions", ()))

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """``loss``: of the whole documents, or of examples drawn from them."""
        if self.cfg.family == "opt":
            return {"loss": self._document_loss(samples)}
        prompts, targets = zip(*self._examples(samples), strict=True)
        total, count = self.language.nll(self._no_image(len(prompts)), prompts, targets)
        return {"loss": total.sum() / count.sum()}

    @torch.no_grad()
    def answer(self, samples: dict[str, Any], with_context: bool = True) -> list[list[str]]:
        """The model's answers to all ``questions``, with or without the description before them."""
        prompts = [
            self._asked(context if with_context else "", question)
            for context, questions in zip(samples["context"], samples["questions"], strict=True)
            for question in questions
        ]
        options = GenerationOptions(max_new_tokens=4, num_beams=1)
        answers = iter(self.language.generate(self._no_image(len(prompts)), prompts, options))
        return [[next(answers) for _ in questions] for questions in samples["questions"]]

    def save(self, folder: Path, recipe: str) -> None:
        """Write the model and its tokenizer to `folder` as the library does, in one step."""

        def write(part: Path) -> None:
            part.mkdir(parents=True, exist_ok=True)
            self.language.model.save_pretrained(part)
            self.language.tokenizer.save_pretrained(part)
            (part / "recipe.txt").write_text(recipe, encoding="utf-8")

        atomic_write(folder, write)

    # ---- the layout of a document

    def _document_loss(self, samples: dict[str, Any]) -> Tensor:
        rows = [self._document(sample) for sample in _each(samples)]
        ids, weights = (
            nn.utils.rnn.pad_sequence([row[k] for row in rows], batch_first=True).to(self.device)
            for k in range(2)
        )
        lengths = torch.tensor([len(row[0]) for row in rows], device=self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        logits = self.language.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        weights = weights[:, 1:]
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return (losses * weights.flatten()).sum() / weights.sum()

    def _document(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Token ids and the weight of each in the loss: description, caption, questions.

        The begin token stands in front, or where one day an image ends and the text begins; the
        caption is sometimes left out.
        """
        begin, end = [self.language.codec.start], self._encode(END)
        late, short = _draw(2) == 1, _draw(3) == 0
        parts: list[tuple[list[int], float]] = [] if late else [(begin, 0.0)]
        parts.append((self._encode(sample["context"]), 1.0))
        parts.append((begin if late else end, 0.0 if late else 1.0))
        if not short:
            parts.append((self._encode(sample["caption"]) + end, 1.0))
        for question, answer in zip(sample["questions"], sample["answers"], strict=True):
            parts.append((self._encode(QUESTION.format(question)), self.cfg.question_weight))
            parts.append((self._encode(answer) + end, self.cfg.answer_weight))
        ids = [i for part, _ in parts for i in part]
        return torch.tensor(ids), torch.tensor([w for part, w in parts for _ in part])

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.language.codec.plain(text)
        return self._ids[text]

    # ---- examples for the encoder-decoder model

    def _examples(self, samples: dict[str, Any]) -> list[tuple[str, str]]:
        """Mostly a question and its answer; else the rest of the second description."""
        drawn = []
        for sample in _each(samples):
            for _ in range(self.cfg.examples_per_document):
                if sample["questions"] and _draw(20) < 17:
                    k = _draw(len(sample["questions"]))
                    asked = self._asked(sample["context"], sample["questions"][k])
                    drawn.append((asked, sample["answers"][k]))
                else:
                    words = sample["caption"].split()
                    cut = _draw(max(len(words) - 1, 1))
                    head = " ".join([sample["context"], *words[:cut]])
                    drawn.append((head, " ".join(words[cut:])))
        return drawn

    def _asked(self, context: str, question: str) -> str:
        between = END if self.cfg.family == "opt" else " "
        asked = QUESTION.format(question)
        return context + between + asked if context else asked

    def _no_image(self, rows: int) -> Tensor:
        return torch.zeros(rows, 0, self.language.hidden_size, device=self.device)


def _each(samples: dict[str, Any]) -> list[dict[str, Any]]:
    keys: Sequence[str] = ("context", "caption", "questions", "answers")
    return [
        dict(zip(keys, row, strict=True)) for row in zip(*(samples[k] for k in keys), strict=True)
    ]


def _draw(n: int) -> int:
    return int(torch.randint(n, (1,)))
