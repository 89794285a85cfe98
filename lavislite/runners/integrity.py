"""Whether a checkpoint folder is as it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

META = "meta.json"
FILES = ("model.safetensors", "trainer.pt", "config.yaml")
_BLOCK = 1 << 20


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and SHA-256 of each of a checkpoint's files but the one that will hold them."""
    paths = [folder / name for name in FILES]
    return {path.name: {"bytes": _size(path), "sha256": _sha256(path)} for path in paths}


def damage(folder: Path, *, thorough: bool = True) -> str | None:
    """What is wrong with the checkpoint in `folder`, or None.

    Args:
        thorough: read the files to the end; otherwise only their sizes are looked at.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        known = meta.get("files", {name: {} for name in FILES})  # format 1 has no fingerprints
    except FileNotFoundError:
        return f"{META} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{META} cannot be read: {error}"
    for name, written in known.items():
        try:
            problem = _differs(folder / name, written, thorough)
        except FileNotFoundError:
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read: {error}"
        if problem is not None:
            return f"{name} {problem}"
    return None


def _differs(path: Path, written: dict[str, Any], thorough: bool) -> str | None:
    size = _size(path)
    if size != written.get("bytes", size):
        return f"has {size} bytes, {written['bytes']} were written"
    if thorough and "sha256" in written and _sha256(path) != written["sha256"]:
        return "has changed since it was written (its SHA-256 differs)"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
