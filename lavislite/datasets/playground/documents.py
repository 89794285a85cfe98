"""What the playground's language models read: captions and facts, then questions about them.

Text alone, of scenes that no picture shows. A document tells the same scene in two ways, because a
language model that has learnt to continue one description with another later takes the image's soft
prompt for the first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lavislite.datasets.playground.captions import captions, full_caption
from lavislite.datasets.playground.facts import fact_document, fact_questions
from lavislite.datasets.playground.questions import Question, questions
from lavislite.datasets.playground.scenes import Scene
from lavislite.datasets.playground.structured import structured_questions

QUESTION = "Question: {} Answer:"


@dataclass(frozen=True)
class Document:
    """A full description of a scene, a caption of it, and questions that the first answers."""

    context: str
    caption: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Share:
    """How many questions of which sort a document asks: VQA's, GQA's, OK-VQA's."""

    plain: int = 5
    structured: int = 2
    facts: int = 1


def document(scene: Scene, share: Share = Share()) -> Document:
    """The document about `scene`, the same each time; its questions are mixed."""
    stream = random.Random(f"{scene.seed}/document")
    asked = questions(scene, stream, share.plain)
    known = {question.text for question in asked}
    for found in structured_questions(scene, stream, share.structured):
        if found.text not in known:
            asked.append(Question(found.text, found.answer, f"{found.structural} {found.semantic}"))
    asked += fact_questions(scene, stream, share.facts)
    stream.shuffle(asked)
    return Document(full_caption(scene, stream), stream.choice(captions(scene)), tuple(asked))


def facts(seed: str, n_questions: int) -> Document:
    """A document that tells facts instead of a scene."""
    context, caption, asked = fact_document(random.Random(seed), n_questions)
    return Document(context, caption, tuple(asked))
