"""Imports go one way, so that each part can be read and tested without the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lavislite"
ALLOWED = {
    "common": {"common"},
    "metrics": {"metrics"},
    "processors": {"common", "processors"},
    "datasets": {"common", "processors", "datasets"},
    "models": {"common", "models"},
    "tasks": {"common", "metrics", "tasks"},
    "runners": {"common", "runners"},
    "download": {"common", "download"},
    "features": {"common", "features"},
}


def imported_parts(file: Path) -> set[str]:
    """The parts of lavislite that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by full name"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in found if name.startswith("lavislite.")}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part: str) -> None:
    files = list((PACKAGE / part).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(PACKAGE)): imported_parts(f) - ALLOWED[part] for f in files}
    assert not {file: parts for file, parts in wrong.items() if parts}


def test_few_modules_speak_torch_distributed() -> None:
    common = ("distributed", "rendezvous", "sharded")
    names = [*(f"common/{name}.py" for name in common), "runners/sharding.py"]
    allowed = {PACKAGE / name for name in names}
    users = {f for f in PACKAGE.rglob("*.py") if "torch.distributed" in _code(f)}
    assert users <= allowed


def _code(file: Path) -> str:
    """A file's statements without docstrings and comments."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(value=None)
    return ast.unparse(tree)
