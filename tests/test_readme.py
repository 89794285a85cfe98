"""What the README says works: its commands parse, its files exist, its code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lavislite import cli
from lavislite.common.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_there_are_commands() -> None:
    assert "bash run_scripts/quickstart.sh" in COMMANDS
    assert "bash run_scripts/test.sh" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_a_command_names_exist(command: str) -> None:
    words = shlex.split(command)
    for word in words:
        named = word.endswith((".sh", ".py", ".txt")) or word.startswith("projects/")
        if named and word != "my_backbone.py":  # the reader's own file, shown above the command
            assert (ROOT / word).exists(), f"{command}: no {word}"


@pytest.mark.usefixtures("trained_playground")
@pytest.mark.parametrize("command", [c for c in COMMANDS if "--cfg-path projects/" in c])
def test_the_options_of_a_command_fit_its_project(command: str) -> None:
    words = shlex.split(command)
    project = words[words.index("--cfg-path") + 1]
    options = words[words.index("--options") + 1 :] if "--options" in words else []
    assert load_config(ROOT / project, [o for o in options if "=" in o]).run.task


@pytest.mark.parametrize("command", ["lavislite models", "lavislite datasets"])
def test_listings_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command in README
    assert cli.main(command.split()[1:]) == 0
    assert "blip2" in capsys.readouterr().out or command.endswith("datasets")


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_examples_compile(code: str) -> None:
    compile(code, "README.md", "exec")


def test_the_backbone_in_the_readme_is_the_one_that_is_tested() -> None:
    tested = (ROOT / "tests" / "data" / "user_backbone.py").read_text()
    assert tested.strip() in {block.strip() for _, block in BLOCKS}
