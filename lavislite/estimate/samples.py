"""A batch of the size that training has, without pictures or texts of anybody."""

from __future__ import annotations

from typing import Any

import torch

# Mean lengths in words; the longest text of a batch is as long as the recipe allows.
CAPTION, QUESTION, ANSWER = 12, 8, 2


def make_samples(model: Any, task: Any, batch: int, image_size: int) -> dict[str, Any]:
    """What the loader would hand to ``task.train_step``, in float32 on the CPU.

    An encoder-decoder that is to read the beginning of a caption gets its two halves, as the model
    itself would divide it by chance.
    """
    samples: dict[str, Any] = {"image": torch.empty(batch, 3, image_size, image_size)}
    longest = model.cfg.max_txt_len or 2 * CAPTION
    if answers_questions(task):
        asked = getattr(model.cfg, "max_question_len", longest)
        return samples | {
            "text_input": texts(batch, QUESTION, min(longest, asked) - 2),
            "text_output": texts(batch, ANSWER, 2 * ANSWER),
        }
    language = getattr(model, "language", None)
    beginning = getattr(getattr(task, "cfg", None), "prompt", None) or getattr(
        model.cfg, "prompt", ""
    )
    if getattr(language, "kind", None) == "seq2seq" and not beginning:
        halves = texts(batch, CAPTION // 2, longest - 1)
        return samples | {"text_input": halves, "text_output": halves}
    return samples | {"text_input": texts(batch, CAPTION, longest - 2)}


def answers_questions(task: Any) -> bool:
    """The task trains on questions and answers."""
    return "vqa" in getattr(task, "evaluations", ())


def texts(count: int, mean: int, longest: int) -> list[str]:
    """Different texts: one of `longest` words, the others of `mean` or, if that is less, as many.

    Each has a word of its own, because equal questions are read once.
    """
    mean = max(min(mean, longest), 1)
    lengths = [max(longest, 1), *[mean] * (count - 1)]
    return [" ".join([f"w{i}", *["word"] * (n - 1)]) for i, n in enumerate(lengths)]
