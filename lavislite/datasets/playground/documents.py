"""What the playground's language models read: captions, then questions with their answers.

Text alone, of scenes that no picture shows. A document tells the same scene in two ways, because a
language model that has learnt to continue one description with another later takes the image's soft
prompt for the first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lavislite.datasets.playground.captions import captions, full_caption
from lavislite.datasets.playground.questions import Question, questions
from lavislite.datasets.playground.scenes import Scene

QUESTION = "Question: {} Answer:"


@dataclass(frozen=True)
class Document:
    """A full description of a scene, a caption of it, and questions that the first answers."""

    context: str
    caption: str
    questions: tuple[Question, ...]


def document(scene: Scene, n_questions: int = 6) -> Document:
    """The document about `scene`, the same each time."""
    stream = random.Random(f"{scene.seed}/document")
    asked = questions(scene, stream, n_questions)
    return Document(full_caption(scene, stream), stream.choice(captions(scene)), tuple(asked))
