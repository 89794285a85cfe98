"""Errors for the person at the keyboard: the command line shows the sentence, not the traceback."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something the user can put right: what failed, what was seen, what would work."""

    def __init__(self, *args: object) -> None:
        # A data loader's worker process hands over its traceback in the text; the user wants the
        # sentence at its end.
        if args and isinstance(args[0], str) and args[0].startswith("Caught "):
            sentence = re.split(rf"^[\w.]*{type(self).__name__}: ", args[0], flags=re.MULTILINE)
            args = (sentence[-1].rstrip(), *args[1:])
        super().__init__(*args)


class ConfigError(UserError):
    """A configuration file, key or value is wrong; the message names file and key."""


class DataError(UserError):
    """An annotation file, record or image is wrong; the message names file and record."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(UserError):
    """Training cannot go on (loss is not a number, disk is full, ...)."""
