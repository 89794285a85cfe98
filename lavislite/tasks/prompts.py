"""What a task puts before the model: one object, for training, evaluation and examples alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavislite.common.errors import ConfigError

QUESTION = "{}"


@dataclass(frozen=True)
class QuestionPrompt:
    """How a question is put: `template` with it in place of ``{}``; empty puts it bare."""

    template: str = ""

    def check(self, key: str) -> None:
        """Raise ConfigError naming `key` unless the question has exactly one place."""
        if self.template and self.template.count(QUESTION) != 1:
            raise ConfigError(
                f"{key}: the question's place {QUESTION} is needed once: {self.template!r}"
            )

    def text(self, question: str) -> str:
        return self.template.replace(QUESTION, question) if self.template else question

    def samples(
        self, samples: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """`samples` as a model wants them.

        Its ``text_input`` holds bare questions; afterwards it holds the prompted ones, and
        ``question`` the bare ones, for a model that reads them beside the picture as well.

        Args:
            captions: one for each question, to stand before its prompt.
        """
        bare = list(samples["text_input"])
        asked = [self.text(question) for question in bare]
        if captions is not None:
            asked = [f"{caption} {text}" for caption, text in zip(captions, asked, strict=True)]
        return {**samples, "text_input": asked, "question": bare}


@dataclass(frozen=True)
class CaptionPrompt:
    """How captions begin; None leaves it to the model."""

    beginning: str | None = None

    def samples(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """`samples` for training: with ``prompt``, unless it is left to the model."""
        return {**samples, **self.options()}

    def options(self) -> dict[str, str]:
        """The keyword arguments of a model's `generate` that say the same."""
        return {} if self.beginning is None else {"prompt": self.beginning}
