"""Every project file loads, builds, steps and evaluates a batch, on tiny data and weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lavislite.build import build_runner
from lavislite.common.config import load_config
from tests.playground_parts import small

PROJECTS = Path(__file__).parents[1] / "projects"
FILES = sorted(path.relative_to(PROJECTS).as_posix() for path in PROJECTS.rglob("*.yaml"))


def few_pictures(folder: Path) -> str:
    """Eight pictures with captions, in the format of the annotation files of own data."""
    rows = []
    for k in range(8):
        Image.new("RGB", (20, 20), (k * 30, 80, 160)).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "caption": f"picture number {k}"})
    (folder / "all.json").write_text(json.dumps(rows))
    return str(folder / "all.json")


def tiny(file: str, folder: Path) -> list[str]:
    """Options that shrink the data and leave the rest of the project as it is."""
    cfg = load_config(PROJECTS / file)
    options = small(cfg, folder / "output")
    for name, dataset in cfg.datasets.items():
        if not (dataset.builder or name).startswith("playground_"):
            annotations, key = few_pictures(folder), f"datasets.{name}"
            options += [f"{key}.annotations.{split}={annotations}" for split in dataset.annotations]
            options.append(f"{key}.images={folder}")
    return options


@pytest.mark.usefixtures("trained_playground")
@pytest.mark.parametrize("file", FILES)
def test_a_project_steps_and_evaluates(file: str, tmp_path: Path) -> None:
    cfg = load_config(PROJECTS / file, tiny(file, tmp_path))
    train = not cfg.run.evaluate
    found = build_runner(cfg, project=file, train=train, dry_run=True).dry_run()
    if train:
        assert found["train"]["loss"] > 0
    wanted = {*cfg.run.valid_splits, *cfg.run.test_splits}
    assert {metric.split("/")[1] for metric in found["metrics"]} == wanted


@pytest.mark.parametrize("file", FILES)
def test_a_project_says_how_to_run_it_and_is_in_the_index(file: str) -> None:
    header = (PROJECTS / file).read_text().split("\nmodel:")[0]
    assert re.search(rf"(train|evaluate).py --cfg-path projects/{file}", header)
    assert f"({file})" in (PROJECTS / "README.md").read_text()
