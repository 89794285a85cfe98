"""Inputs and outputs of the official evaluation scripts, as kept in tests/data/eval."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data" / "eval"


def official(name: str) -> Any:
    """The content of a file, compressed or not."""
    file = path(name)
    raw = file.read_bytes()
    return json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)


def path(name: str) -> Path:
    """Where the file is."""
    plain = FOLDER / name
    return plain if plain.exists() else FOLDER / f"{name}.gz"
