"""Conversations as one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavislite.common.errors import UserError
from lavislite.common.registry import did_you_mean

ROLES = ("system", "user", "assistant")
PLAIN = {"system": "{}", "user": "Question: {}", "assistant": "Answer: {}"}
_FORM = 'Pass [{"role": "user", "content": "what is it?"}]: one conversation for all samples.'


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt for the next answer, by the tokenizer's chat template or as plain questions.

    The template's text holds its special tokens, the begin token among them if there is one; the
    language adapters add none to a prompt that begins with it.

    Args:
        messages: {"role": system, user or assistant, "content": text}, the last one a user's.

    Raises:
        UserError: a message is not of that form, or the template refuses their order.
    """
    _check(messages)
    if getattr(tokenizer, "chat_template", None):
        from jinja2 import TemplateError

        try:
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except TemplateError as error:
            raise UserError(f"The chat template refuses these messages: {error}") from error
    turns = [PLAIN[message["role"]].format(message["content"].strip()) for message in messages]
    return " ".join([*turns, "Answer:"])


def _check(messages: Sequence[Mapping[str, str]]) -> None:
    if isinstance(messages, str | Mapping):
        raise UserError(f"messages: expected a list, got a {type(messages).__name__}. {_FORM}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(
                f"messages[{number}]: expected role and content, got a {type(message).__name__}. "
                f"{_FORM}"
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            near = did_you_mean(str(role), ROLES)
            raise UserError(
                f"messages[{number}]: unknown role {role!r}.{near} Known: {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise UserError(
                f"messages[{number}]: expected a text as content, got {type(content).__name__}."
            )
    if not messages or messages[-1]["role"] != "user":
        raise UserError("messages: the last message must be the user's, to be answered.")
