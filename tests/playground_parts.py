"""A machine on which the playground's projects have already run, in seconds: hardly trained."""

from __future__ import annotations

from pathlib import Path

from lavislite.build import build_runner
from lavislite.common.config import load_config
from lavislite.datasets.playground.text import PlaygroundTextBuilder, PlaygroundTextConfig
from lavislite.models.language.pretraining import TinyLanguageConfig, TinyLanguageModel
from lavislite.models.vision.tiny import TinyViT, playground_weights
from lavislite.playground import PARTS, RECIPE, keep_result, recipe

PROJECTS = Path(__file__).parents[1] / "projects"
STAGES = ("pretrain_stage1", "pretrain_stage2", "pretrain_stage2_t5")


def small(cfg, folder: Path) -> list[str]:
    """Options that shrink the data of a project and leave the rest of it as it is."""
    options = ["run.batch_size_train=4", "run.batch_size_eval=4", "run.num_workers=0"]
    for name, dataset in cfg.datasets.items():
        if (dataset.builder or name).startswith("playground_"):
            sizes = {"num_train": 12, "num_val": 6, "num_test": 6}
            if (dataset.builder or name) != "playground_text":
                sizes |= {"num_nocaps": 6, "num_flickr30k": 6}
            options += [f"datasets.{name}.{key}={size}" for key, size in sizes.items()]
    return [*options, f"run.output_dir={folder}"]


def make_parts() -> None:
    """Put untrained frozen parts where the trained ones belong, under the recipes' names."""
    recipes = {
        Path(part.project).stem: recipe(load_config(PROJECTS / part.project)) for part in PARTS
    }
    tower = TinyViT(weights="none")
    tower.save(playground_weights(), {RECIPE: recipes["playground_vision"]})
    texts = PlaygroundTextBuilder(PlaygroundTextConfig(num_train=20), name="text")
    for part in PARTS[1:]:
        stem = Path(part.project).stem
        family = stem.removeprefix("playground_")
        cfg = TinyLanguageConfig(family=family, width=64, layers=2, heads=8)
        captions = texts.build("train", train=True).captions()
        part.save(TinyLanguageModel(cfg, captions), recipes[stem])


def run_stages(folder: Path) -> None:
    """One step of stage 1 and of both stages 2, each found by the next."""
    make_parts()
    for stage in STAGES:
        project = PROJECTS / "blip2" / f"{stage}.yaml"
        shrunk = [*small(load_config(project), folder), "run.max_steps=1", "run.report=false"]
        shrunk += ["run.valid_splits=[]", "run.test_splits=[]", "run.monitor=null"]
        cfg = load_config(project, shrunk)
        runner = build_runner(cfg, project=project)
        runner.train()
        keep_result(cfg, project, runner)
