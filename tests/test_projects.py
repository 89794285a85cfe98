"""Every project file loads, builds, steps and evaluates a batch, on tiny data and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lavislite.build import build_runner
from lavislite.common.config import load_config

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
    data = load_config(PROJECTS / file).datasets
    options = ["run.batch_size_train=4", "run.batch_size_eval=4", "run.num_workers=0"]
    for name, dataset in data.items():
        key = f"datasets.{name}"
        if (dataset.builder or name).startswith("playground_"):
            options += [f"{key}.num_train=12", f"{key}.num_val=6", f"{key}.num_test=6"]
        else:
            annotations = few_pictures(folder)
            options += [f"{key}.annotations.{split}={annotations}" for split in dataset.annotations]
            options.append(f"{key}.images={folder}")
    if "\n  vision: {name: tiny" in (PROJECTS / file).read_text():
        options.append("model.vision.weights=none")
    return options


@pytest.mark.parametrize("file", FILES)
def test_a_project_steps_and_evaluates(file: str, tmp_path: Path) -> None:
    cfg = load_config(PROJECTS / file, tiny(file, tmp_path))
    found = build_runner(cfg, project=file, dry_run=True).dry_run()
    assert found["train"]["loss"] > 0
    wanted = {*cfg.run.valid_splits, *cfg.run.test_splits}
    assert {metric.split("/")[1] for metric in found["metrics"]} == wanted


@pytest.mark.parametrize("file", FILES)
def test_a_project_says_how_to_run_it_and_is_in_the_index(file: str) -> None:
    header = (PROJECTS / file).read_text().split("\nmodel:")[0]
    assert f"train.py --cfg-path projects/{file}" in header
    assert f"({file})" in (PROJECTS / "README.md").read_text()
