"""Errors for the person at the keyboard: the command line shows the sentence, not the traceback."""


class UserError(Exception):
    """Something the user can put right: what failed, what was seen, what would work."""


class ConfigError(UserError):
    """A configuration file, key or value is wrong; the message names file and key."""


class DataError(UserError):
    """An annotation file, record or image is wrong; the message names file and record."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(UserError):
    """Training cannot go on (loss is not a number, disk is full, ...)."""
