"""``lavislite score``: the official figures of a result file, without a model or a project."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields

from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write_text
from lavislite.common.registry import did_you_mean
from lavislite.score_kinds import (
    score_aok_vqa,
    score_captions,
    score_gqa,
    score_nocaps,
    score_ok_vqa,
    score_vqa,
)
from lavislite.score_report import Files, Report

KINDS: dict[str, Callable[[Files], Report]] = {
    "vqa": score_vqa,
    "ok_vqa": score_ok_vqa,
    "gqa": score_gqa,
    "aok_vqa": score_aok_vqa,
    "caption": score_captions,
    "nocaps": score_nocaps,
}
# Options beyond the predictions and annotations, and the kinds that know them.
_VQA = ("vqa", "ok_vqa")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("questions", "version", "few", "lemmatize"), _VQA),
    **dict.fromkeys(("choices", "scenes", "attention", "object_features", "consistency"), ("gqa",)),
    "multiple_choice": ("aok_vqa",),
}


def score(kind: str, files: Files) -> Report:
    """Score a result file.

    Raises:
        UserError: an unknown kind, an option that the kind does not have, a file that is missing
            or of another kind, or results that do not fit the annotations.
    """
    if kind not in KINDS:
        raise UserError(
            f"Unknown kind of result '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}"
        )
    for option in fields(files):
        kinds = OPTIONS.get(option.name)
        if kinds and kind not in kinds and getattr(files, option.name) != option.default:
            name = option.name.replace("_", "-")
            raise UserError(f"--{name} is for {' and '.join(kinds)}, not for {kind}.")
    for name, known in (("version", ("2021", "2017")), ("few", ("official", "scaled"))):
        if getattr(files, name) not in known:
            raise UserError(f"--{name}: expected {' or '.join(known)}, saw {getattr(files, name)}.")
    return KINDS[kind](files)


def run(args: argparse.Namespace) -> int:
    """The command: score, print the table, write the file if there is to be one."""
    files = Files(**{option.name: getattr(args, option.name) for option in fields(Files)})
    report = score(args.kind, files)
    print(*report.lines(), sep="\n")
    if args.output is not None:
        text = json.dumps(report.as_dict(files), indent=1, ensure_ascii=False)
        try:
            atomic_write_text(args.output, text + "\n")
        except OSError as error:
            raise UserError(f"--output {args.output}: {error.strerror}.") from error
        print(f"\nwritten: {args.output}")
    return 0
