"""Imports the user's own code, so that what it registers is found by name."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lavislite.common.errors import UserError
from lavislite.common.io import require_path

_NOT_PLUGINS = ("conftest", "setup", "noxfile")


def import_user_dir(user_dir: str | Path) -> Path:
    """Import a ``.py`` file, every ``.py`` file of a folder, or a package, once per process.

    The folder (a package's parent) joins ``sys.path``, so that the files can import each other and
    worker processes find them. Returns the absolute path.

    Raises:
        UserError: no such file, a module name that is taken, or the user's code fails; the message
            names the user's file and line.
    """
    path = require_path(user_dir, "user directory").resolve()
    package = path.is_dir() and (path / "__init__.py").exists()
    folder = path.parent if package or path.is_file() else path
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if path.is_file():
        _import(path.stem, path)
        return path
    if package:
        _import(path.name, path / "__init__.py")
    for file in sorted(path.glob("*.py")):
        if not file.stem.startswith(("_", "test_")) and file.stem not in _NOT_PLUGINS:
            _import(f"{path.name}.{file.stem}" if package else file.stem, file)
    return path


def _import(name: str, file: Path) -> None:
    owner = _file_of(sys.modules.get(name))
    if name in sys.modules and owner != file:
        raise UserError(
            f"{file}: the name '{name}' is taken by {owner or 'a built-in'}; rename the file."
        )
    try:
        importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(
            f"--user-dir: {error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
        ) from error
    except Exception as error:  # user code may fail in any way; show where in *their* file
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(file.parent)]
        line = f", line {own[-1].lineno}" if own else ""
        where = own[-1].filename if own else file
        raise UserError(f"--user-dir: {where}{line}: {type(error).__name__}: {error}") from error


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None
