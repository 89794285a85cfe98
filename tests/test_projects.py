"""Every project file loads, builds, steps and evaluates a batch, on tiny data and weights."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lavislite.build import build_runner
from lavislite.common.config import Config, load_config
from lavislite.common.layers import file_layers
from lavislite.common.packaged import CONFIG_ROOT
from lavislite.common.trained import last_run, remember_run
from tests.playground_parts import small
from tests.project_parts import picture, stand_ins, write_data_sets, write_language_models

ROOT = Path(__file__).parents[1]
PROJECTS = ROOT / "projects"
FILES = sorted(path.relative_to(PROJECTS).as_posix() for path in PROJECTS.rglob("*.yaml"))
PAPER = [file for file in FILES if "/paper/" in file]
HERE = [file for file in FILES if file not in PAPER]  # those that need nothing but this machine


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("data_sets")
    write_data_sets(cache)
    return cache


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_language_models(tmp_path_factory.mktemp("language"))


@pytest.mark.parametrize("file", PAPER)
def test_a_published_experiment_steps_and_evaluates(
    file: str,
    data_sets: Path,
    language: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAVISLITE_CACHE", str(data_sets))
    options = stand_ins(load_config(PROJECTS / file), language)
    cfg = load_config(PROJECTS / file, [*options, f"run.output_dir={tmp_path}"])
    step_and_evaluate(file, cfg)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("retrieval_finetune_vitL", "retrieval_flickr30k_vitL"),
        ("pretrain_stage2_opt2.7b_vitL", "vqav2_zeroshot_opt2.7b_vitL"),
    ],
)
def test_what_one_experiment_trains_another_finds(
    first: str,
    then: str,
    data_sets: Path,
    language: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAVISLITE_CACHE", str(data_sets))
    monkeypatch.chdir(tmp_path)
    folder = PROJECTS / "blip2" / "paper"
    options = stand_ins(load_config(folder / f"{first}.yaml"), language)
    options += ["run.max_steps=1", "run.valid_splits=[]", "run.test_splits=[]", "run.monitor=null"]
    build_runner(load_config(folder / f"{first}.yaml", options), project=f"{first}.yaml").train()

    own = load_config(folder / f"{then}.yaml")
    options = [*stand_ins(own, language), f"model.pretrained={own.model.pretrained}"]
    step_and_evaluate(f"{then}.yaml", load_config(folder / f"{then}.yaml", options))


@pytest.fixture
def finished_projects(trained_playground: Path) -> None:
    """The runs that other projects start from, on a playground that has hardly been trained."""
    stage1 = last_run(PROJECTS / "blip2" / "pretrain_stage1.yaml")
    remember_run(PROJECTS / "blip2" / "retrieval_finetune.yaml", stage1)


@pytest.mark.usefixtures("finished_projects")
@pytest.mark.parametrize("file", HERE)
def test_a_project_steps_and_evaluates(file: str, tmp_path: Path) -> None:
    cfg = load_config(PROJECTS / file)
    options = [*small(cfg, tmp_path / "output"), *own_data(cfg, tmp_path)]
    step_and_evaluate(file, load_config(PROJECTS / file, options))


def step_and_evaluate(file: str, cfg: Config) -> None:
    train = not cfg.run.evaluate
    runner = build_runner(cfg, project=file, train=train, dry_run=True)
    found = runner.dry_run()
    if train:
        assert found["train"]["loss"] > 0
    evaluated = {dataset.split for dataset in runner.evaluated_parts()}
    assert evaluated == {*cfg.run.valid_splits, *cfg.run.test_splits}
    scored = {metric.split("/")[1] for metric in found["metrics"]}
    assert scored == evaluated - unanswered(cfg)


def unanswered(cfg: Config) -> set[str]:
    """Splits whose answers only a server knows."""
    return {"test-dev", "test"} if "coco_vqa" in cfg.datasets else set()


def own_data(cfg: Config, folder: Path) -> list[str]:
    """Eight pictures with captions or questions, for each data set of the user's own."""
    options: list[str] = []
    for name, dataset in cfg.datasets.items():
        if (dataset.builder or name).startswith("playground_"):
            continue
        rows: list[dict[str, Any]] = []
        for k in range(8):
            picture(folder / f"{k}.png", k)
            rows.append({"image": f"{k}.png", "caption": f"picture number {k}"})
            rows[-1] |= {"question": "which number is it?", "answer": str(k), "question_id": k}
        (folder / "all.json").write_text(json.dumps(rows))
        options += [
            f"datasets.{name}.annotations.{split}={folder / 'all.json'}"
            for split in dataset.annotations
        ]
        options.append(f"datasets.{name}.images={folder}")
    return options


# ------------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("file", FILES)
def test_a_project_says_how_to_run_it_and_is_in_the_index(file: str) -> None:
    text = (PROJECTS / file).read_text()
    header = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    assert text.startswith(header)
    assert re.search(rf"(train|evaluate).py --cfg-path projects/{re.escape(file)}\n", header)
    assert f"({file})" in (PROJECTS / "README.md").read_text()


# The paper's Tables 7 to 9: epochs, warm-up, learning rate, batch of 8 GPUs, beta 2, pixels, decay
# per layer.
FINE_TUNING = {
    "caption_finetune_flant5xl": (5, 1000, 1e-5, 256, 0.999, 364, 1.0),
    "caption_finetune_opt2.7b": (5, 1000, 1e-5, 256, 0.999, 364, 1.0),
    "caption_finetune_opt6.7b": (5, 1000, 1e-5, 256, 0.999, 364, 0.95),
    "vqa_finetune_flant5xl": (5, 1000, 1e-5, 128, 0.999, 490, 0.95),
    "vqa_finetune_opt2.7b": (5, 1000, 1e-5, 128, 0.999, 490, 0.95),
    "vqa_finetune_opt6.7b": (5, 1000, 1e-5, 128, 0.999, 490, 0.9),
    "retrieval_finetune_vitL": (5, 1000, 5e-6, 224, 0.98, 364, 1.0),
    "retrieval_finetune_vitg": (5, 1000, 1e-5, 224, 0.999, 364, 0.95),
}


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning_has_the_published_settings(name: str) -> None:
    cfg = load_config(PROJECTS / "blip2" / "paper" / f"{name}.yaml")
    run, vision = cfg.run, cfg.model.vision
    found = (run.max_epoch, run.warmup_steps, run.init_lr, run.batch_size_train * 8, run.beta2)
    assert (*found, vision.image_size, run.lr_layer_decay) == FINE_TUNING[name]
    assert (run.beta1, run.weight_decay, run.accum_grad_iters) == (0.9, 0.05, 1)
    assert (vision.drop_path_rate, vision.freeze) == (0, False)


@pytest.mark.parametrize("file", [file for file in PAPER if "zeroshot" in file])
def test_zero_shot_questions_are_put_as_published(file: str) -> None:
    cfg = load_config(PROJECTS / file)
    put = {"blip2_opt": "Question: {} Answer:", "blip2_t5": "Question: {} Short answer:"}
    assert cfg.run.prompt == put[cfg.model.arch]
    assert (cfg.run.num_beams, cfg.run.length_penalty, cfg.run.max_len) == (5, -1, 10)
    assert (cfg.model.vision.image_size, cfg.run.evaluate) == (224, True)


@pytest.mark.parametrize("file", PAPER)
def test_the_weights_of_a_published_experiment_are_known(file: str) -> None:
    known = "".join(path.read_text() for path in (CONFIG_ROOT / "models").rglob("*.yaml"))
    own = file_layers(PROJECTS / file)[-1].data.get("model") or {}
    for source in as_list(own.get("pretrained")):
        if "://" in source:
            assert f" {source}\n" in known
        else:  # a run of another project, which the header names
            output, project, latest = source.split("/")
            assert (output, latest) == ("output", "latest")
            assert f"{project}.yaml" in read(file)
            assert (PROJECTS / file).with_name(f"{project}.yaml").is_file()


def read(file: str) -> str:
    return (PROJECTS / file).read_text()


def as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def paper(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "run_scripts" / "paper.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_script_lists_every_published_experiment() -> None:
    listed = [line.split()[0] for line in paper("--list").stdout.splitlines()]
    assert listed == [Path(file).stem for file in PAPER]


@pytest.mark.parametrize(
    ("name", "tool"),
    [("gqa_zeroshot_flant5xl", "evaluate.py"), ("vqa_finetune_opt2.7b", "train.py")],
)
def test_the_script_says_what_it_would_run(name: str, tool: str) -> None:
    done = paper("--dry-run", name, "--nproc-per-node=2", "--", "--options", "run.seed=1")
    expected = (
        f"torchrun --nproc-per-node=2 {tool} --cfg-path projects/blip2/paper/{name}.yaml "
        "--options run.seed=1"
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected)


def test_the_script_refuses_an_unknown_experiment() -> None:
    done = paper("vqa_zeroshot_gpt2")
    assert done.returncode == 2
    assert "no published experiment 'vqa_zeroshot_gpt2'" in done.stderr
