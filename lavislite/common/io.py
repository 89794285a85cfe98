"""Files: the cache folder, atomic writes, reading what must be there."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavislite.common.errors import DataError, UserError
from lavislite.common.registry import did_you_mean

_OLD = "old"  # where `atomic_write` keeps a folder while another takes its place
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # the temporary folders of this module


def cache_dir() -> Path:
    """Where generated and downloaded files live: ``$LAVISLITE_CACHE`` or ``~/.cache/lavislite``."""
    chosen = os.environ.get("LAVISLITE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lavislite"


# ---------------------------------------------------------------------------------------- writing


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file (or folder) beside `path`, then move it into place.

    A reader sees the old content or the new, never half of it; a crash leaves the old.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(target)
    try:
        part = folder / target.name
        write(part)
        if part.is_dir():
            _replace_folder(part, target, folder / _OLD)
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(part: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    target.rename(aside)  # folders cannot be swapped in one move everywhere
    try:
        part.rename(target)
    except OSError:
        aside.rename(target)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder: it is gone at once, though emptying it takes a while."""
    aside = _beside(path)
    path.rename(aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: str | Path) -> None:
    """Tidy up after `atomic_write` and `remove_folder` in `folder` that a kill cut short.

    What was complete is put in place, what was not is removed. Nobody may be writing there.
    """
    for left in Path(folder).glob(".*"):
        name = _LEFTOVER.fullmatch(left.name)
        if name is None or not left.is_dir() or left.is_symlink():
            continue
        content = {entry.name for entry in left.iterdir()}
        if not content <= {name[1], _OLD}:
            continue  # not one of ours
        target = left.with_name(name[1])
        if content == {name[1], _OLD} and not target.exists():  # killed between the two moves
            (left / name[1]).rename(target)
        shutil.rmtree(left, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A new hidden folder next to `target`; `clear_leftovers` knows it by its name."""
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write` for a string, in UTF-8."""
    atomic_write(path, lambda part: _write_text(part, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, across processes."""
    from filelock import FileLock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path)):
        yield


# ---------------------------------------------------------------------------------------- reading


def require_path(path: str | Path, what: str = "file") -> Path:
    """`path` itself when it exists.

    Raises:
        UserError: it does not; the nearest name in the same folder is offered.
    """
    found = Path(path).expanduser()
    if found.exists():
        return found
    folder = found.parent
    if not folder.is_dir():
        raise UserError(f"No {what} {found}: the folder {folder} does not exist.")
    near = did_you_mean(found.name, [entry.name for entry in folder.iterdir()])
    raise UserError(f"No {what} {found}.{near}")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: no such file.
        DataError: not JSON; the message names line and column.
    """
    try:
        return json.loads(require_path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
