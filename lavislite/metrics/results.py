"""Result files: lists of rows, each an id and an answer, checked before anything is scored.

Whatever an official script would stumble over, or count wrongly without a word (an answer that is
missing, there twice, or for a question nobody asked), is a ``ValueError`` that names the record.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any


def rows_by_id(rows: Any, what: str, id_key: str, *keys: str) -> dict[Any, Mapping[str, Any]]:
    """The rows of a file by their id, each with all of `keys`.

    Args:
        what: what a row is, for the messages: "result", "annotation", "question".

    Raises:
        ValueError: not a list, an empty one, a row that is no object or lacks a key, an id that is
            neither a string nor a whole number, or one that was there before.
    """
    if not isinstance(rows, list) or not rows:
        seen = "an empty list" if isinstance(rows, list) else type(rows).__name__
        raise ValueError(f"{what}s: expected a list of objects, saw {seen}")
    wanted = (id_key, *keys)
    found: dict[Any, Mapping[str, Any]] = {}
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not set(wanted) <= row.keys():
            seen = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)[:60]
            names = " and ".join(f"`{key}`" for key in wanted)
            raise ValueError(f"{what} {n}: expected {names}, saw {seen}")
        key = row[id_key]
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise ValueError(f"{what} {n}: {id_key} must be a string or a number, saw {key!r}")
        if key in found:
            raise ValueError(f"{what} {n}: {id_key} {key!r} was there before")
        found[key] = row
    return found


def answers_by_id(
    results: Any,
    questions: Iterable[Hashable],
    id_key: str = "question_id",
    answer_key: str = "answer",
    *,
    required: Iterable[Hashable] | None = None,
) -> dict[Any, str]:
    """The answers of a result file by question, exactly one for each question.

    Args:
        results: ``[{id_key: ..., answer_key: "text"}]``.
        questions: the ids that exist.
        required: those of them that must be answered; default: all.

    Raises:
        ValueError: as `rows_by_id`, an answer that is no text, or ids that do not fit.
    """
    rows = rows_by_id(results, "result", id_key, answer_key)
    for question, row in rows.items():
        if not isinstance(row[answer_key], str):
            raise ValueError(
                f"result for {id_key} {question!r}: `{answer_key}` must be a string, saw "
                f"{row[answer_key]!r}"
            )
    check_ids(rows, questions, id_key, required=required)
    return {question: row[answer_key] for question, row in rows.items()}


def check_ids(
    answered: Iterable[Hashable],
    questions: Iterable[Hashable],
    id_key: str = "question_id",
    *,
    required: Iterable[Hashable] | None = None,
) -> None:
    """Refuse results that leave a question out or answer one that does not exist.

    Args:
        answered: the ids in the results.
        questions: the ids that exist.
        required: those of them that must be answered; default: all.

    Raises:
        ValueError: says how many, and which is the first.
    """
    known = dict.fromkeys(questions)
    given = dict.fromkeys(answered)
    wanted = known if required is None else dict.fromkeys(required)
    missing = [question for question in wanted if question not in given]
    unknown = [question for question in given if question not in known]
    hint = ""
    if set(map(str, unknown)) & set(map(str, known)):
        hint = " (numbers and strings differ)"
    elif not known.keys() & given.keys():
        hint = ": results and questions have none in common; another data set or split?"
    for found, total, problem in (
        (missing, len(wanted), "questions have no result"),
        (unknown, len(given), "results are for no known question"),
    ):
        if found:
            raise ValueError(
                f"{len(found)} of {total} {problem}, the first is {id_key} {found[0]!r}{hint}"
            )
