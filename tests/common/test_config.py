"""Configuration: which layer wins, and what a mistake says."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from lavislite.common import catalog
from lavislite.common import packaged as packaged_files
from lavislite.common.config import load_config, resolve
from lavislite.common.errors import ConfigError, UserError
from lavislite.common.registry import UnknownNameError

from .components import Builder, Model, RetrievalTask, Task


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for registry, names in (
        (catalog.models, {"stand_in": Model}),
        (catalog.datasets, {"captions": Builder}),
        (catalog.tasks, {"learn": Task, "rank": RetrievalTask}),
    ):
        monkeypatch.setattr(registry, "_objects", {**registry._objects, **names})
    packaged = tmp_path / "packaged"
    write(packaged / "models/stand_in/small.yaml", "model: {num_query_tokens: 8}")
    write(packaged / "models/stand_in/large.yaml", "model: {num_query_tokens: 64}")
    write(packaged / "models/aliases.yaml", "other_name: stand_in")
    write(packaged / "datasets/captions/default.yaml", "annotations: {train: packaged.json}")
    write(packaged / "datasets/captions/tiny.yaml", "datasets: {captions: {images: tiny}}")
    monkeypatch.setattr(packaged_files, "CONFIG_ROOT", packaged)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


PROJECT = """
    model: {arch: stand_in, model_type: small, vision: {name: from_project}}
    datasets:
      captions: {images: /pictures}
    run: {task: learn, max_epoch: 3}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project.yaml", PROJECT)


def test_layers_weakest_first(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "run: {max_epoch: 1, seed: 1, warmup_steps: 1}")
    write(tmp_path / "sub/b.yaml", "base: ../a.yaml\nrun: {max_epoch: 2, seed: 2}")
    top = write(
        tmp_path / "top.yaml",
        "base: sub/b.yaml\nmodel: {arch: stand_in, model_type: small}\nrun: {task: learn, seed: 3}",
    )
    cfg = load_config(top, ["run.seed=4"])
    assert cfg.model.label_smoothing == 0.1  # dataclass
    assert cfg.model.num_query_tokens == 8  # packaged
    assert (cfg.run.warmup_steps, cfg.run.max_epoch, cfg.run.seed) == (1, 2, 4)


def test_later_base_files_win(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "run: {seed: 1, max_epoch: 1}")
    write(tmp_path / "b.yaml", "run: {seed: 2}")
    top = write(
        tmp_path / "c.yaml", "base: [a.yaml, b.yaml]\nmodel: {arch: stand_in}\nrun: {task: learn}"
    )
    cfg = load_config(top)
    assert (cfg.run.seed, cfg.run.max_epoch) == (2, 1)


def test_options_reach_the_choice_of_the_packaged_file(project: Path) -> None:
    assert load_config(project).model.num_query_tokens == 8
    assert load_config(project, ["model.model_type=large"]).model.num_query_tokens == 64


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.valid_splits=[val, 'test one']", ["val", "test one"]),
        ("run.resume=null", None),
        ("run.resume='null'", "null"),
        ("run.init_lr=1e-5", 1e-5),
        ("run.output_dir=a=b", "a=b"),
        ("model.vision.options.patch=4", {"patch": 4}),
    ],
)
def test_option_values(project: Path, option: str, expected: object) -> None:
    value: object = load_config(project, [option])
    for key in option.split("=")[0].split(".")[: 3 if "options" in option else 2]:
        value = getattr(value, key)
    assert value == expected


def test_a_resolved_config_runs_as_it_is(project: Path, tmp_path: Path) -> None:
    cfg = load_config(project, ["run.init_lr=3e-5", "model.vision.options={a: [1, {b: null}]}"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(cfg.to_yaml())
    again = load_config(saved)
    assert again == cfg
    assert again.to_yaml() == cfg.to_yaml()
    assert type(again.model.vision.options) is dict


def test_interpolations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    path = write(
        tmp_path / "p.yaml",
        """
        model: {arch: stand_in}
        run: {task: learn, output_dir: "${oc.env:SCRATCH}/out"}
        """,
    )
    assert load_config(path).run.output_dir == "/scratch/out"


# ---- datasets


def test_own_names_types_and_packaged_dataset_files() -> None:
    data = {
        "model": {"arch": "stand_in"},
        "datasets": {"captions": {}, "mine": {"builder": "captions", "type": "tiny"}},
        "run": {"task": "learn"},
    }
    cfg = resolve(data, origin="test")
    assert cfg.datasets["captions"].annotations == {"train": "packaged.json"}
    assert (cfg.datasets["mine"].annotations, cfg.datasets["mine"].images) == ({}, "tiny")
    data["datasets"]["mine"]["type"] = "tini"  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"no type 'tini'. Did you mean 'tiny'"):
        resolve(data, origin="test")


def test_a_dataset_of_the_base_can_be_taken_away(project: Path, tmp_path: Path) -> None:
    top = write(
        tmp_path / "top.yaml",
        "base: project.yaml\ndatasets: {captions: null, mine: {builder: captions}}",
    )
    assert list(load_config(top).datasets) == ["mine"]


# ---- mistakes


def message(project: Path, text: str) -> str:
    bad = write(project.with_name("bad.yaml"), f"base: project.yaml\n{dedent(text)}")
    with pytest.raises(UserError) as caught:
        load_config(bad)
    return str(caught.value).replace(f"{bad}", "bad.yaml")


def test_an_unknown_key_names_file_key_and_nearest(project: Path) -> None:
    assert message(project, "run: {bacth_size_train: 3}") == (
        "bad.yaml: run.bacth_size_train: unknown key. Did you mean 'batch_size_train'?"
    )
    assert "model.vision.imagesize: unknown key. Did you mean 'image_size'?" in message(
        project, "model: {vision: {imagesize: 3}}"
    )
    assert "datasets.captions.annotation: unknown key. Did you mean 'annotations'?" in message(
        project, "datasets: {captions: {annotation: x}}"
    )


def test_a_base_file_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "run: {}")
    top = write(tmp_path / "top.yaml", "base: bsae.yaml")
    with pytest.raises(ConfigError, match=r"No base file .*bsae.yaml. Did you mean 'base.yaml'"):
        load_config(top)


def test_the_guilty_file_is_the_base(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "wrong.yaml", "run: {max_epohc: 1}")
    top = write(tmp_path / "top.yaml", "base: [project.yaml, wrong.yaml]")
    with pytest.raises(ConfigError) as caught:
        load_config(top)
    assert "wrong.yaml: run.max_epohc" in str(caught.value)
    assert "top.yaml" not in str(caught.value)


def test_the_guilty_option(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--options: run.sed: unknown key. Did you mean 'seed'"):
        load_config(project, ["run.sed=1"])
    with pytest.raises(ConfigError, match=r"--options: expected section.key=value, saw 'run.seed'"):
        load_config(project, ["run.seed"])


def test_wrong_types_say_expected_and_seen(project: Path) -> None:
    assert message(project, "run: {max_epoch: many}") == (
        "bad.yaml: run.max_epoch: expected int, saw 'many' (str)"
    )
    assert "run.train_splits: expected list[str], saw 'train' (str)" in message(
        project, "run: {train_splits: train}"
    )
    assert "model.vision: expected a mapping, saw 'tiny' (str)" in message(
        project, "model: {vision: tiny}"
    )
    assert "model.vision.freeze: expected bool, saw 'perhaps'" in message(
        project, "model: {vision: {freeze: perhaps}}"
    )


def test_a_list_and_a_mapping_replace_each_other_where_both_may_stand(project: Path) -> None:
    text = project.read_text().replace(
        "{images: /pictures}", "{images: [a, b], annotations: {train: {path: a.json, url: b}}}"
    )
    project.write_text(text)
    options = ["datasets.captions.annotations.train=[a, b]", "datasets.captions.images={val: c}"]
    captions = load_config(project, options).datasets["captions"]
    assert (captions.annotations, captions.images) == ({"train": ["a", "b"]}, {"val": "c"})
    cfg = load_config(project, ["datasets.captions.annotations.train.path=c"])
    assert cfg.datasets["captions"].annotations == {"train": {"path": "c", "url": "b"}}
    for option, expected in (
        ("datasets.captions.annotations=[a]", "expected a mapping, saw ['a'] (list)"),
        ("run.train_splits={a: b}", "expected list[str], saw {'a': 'b'} (dict)"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(project, [option])
        assert str(caught.value) == f"--options: {option.split('=')[0]}: {expected}"


def test_all_mistakes_are_told_at_once(project: Path) -> None:
    text = message(project, "model: {pretraind: x}\nrun: {max_epoch: a, sede: 1}")
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "model.pretraind",
        "run.max_epoch",
        "run.sede",
    ]


def test_unknown_section_and_names(project: Path) -> None:
    assert "unknown section 'dataset'. Did you mean 'datasets'?" in message(project, "dataset: {}")
    assert "Unknown dataset 'caption'. Did you mean 'captions'?" in message(
        project, "datasets: {caption: {}}"
    )
    with pytest.raises(UnknownNameError, match=r"Did you mean 'learn'"):
        load_config(project, ["run.task=lern"])
    with pytest.raises(ConfigError, match=r"no model_type 'smal'. Did you mean 'small'"):
        load_config(project, ["model.model_type=smal"])
    with pytest.raises(ConfigError, match=r"model.arch is missing"):
        resolve({"run": {"task": "learn"}}, origin="test")


def test_broken_yaml_is_located(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "model:\n  arch: x\n bad: [1\n")
    with pytest.raises(ConfigError, match=r"p.yaml, line 3, column 2"):
        load_config(path)
    twice = write(tmp_path / "q.yaml", "run:\n  seed: 1\n  seed: 2\n")
    with pytest.raises(ConfigError, match=r"q.yaml, line 3.*duplicate key"):
        load_config(twice)


def test_missing_files_and_circles(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'project.yaml'"):
        load_config(tmp_path / "projct.yaml")
    write(tmp_path / "a.yaml", "base: b.yaml")
    write(tmp_path / "b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match=r"circle: a.yaml -> b.yaml -> a.yaml"):
        load_config(tmp_path / "a.yaml")


# ---- the user's own code


def test_user_dir_registers_before_names_are_looked_up(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path / "code/helper_of_mine.py", "SIZE = 5\n")
    write(
        tmp_path / "code/model_of_mine.py",
        """
        from dataclasses import dataclass
        from helper_of_mine import SIZE
        from lavislite.common.catalog import register_model

        @dataclass
        class Options:
            arch: str = "mine"
            model_type: str | None = None
            size: int = SIZE

        @register_model("mine")
        class Mine:
            Config = Options
        """,
    )
    path = write(tmp_path / "p.yaml", "user_dir: code\nmodel: {arch: mine}\nrun: {task: learn}")
    cfg = load_config(path)
    assert cfg.model.size == 5
    assert cfg.user_dir == str((tmp_path / "code").resolve())  # reproduces from anywhere


def test_an_error_in_user_code_shows_their_line(project: Path, tmp_path: Path) -> None:
    code = write(tmp_path / "broken_of_mine.py", "import os\n\nx = 1 / 0\n")
    with pytest.raises(UserError, match=r"broken_of_mine.py, line 3: ZeroDivisionError"):
        load_config(project, user_dir=str(code))
    code = write(tmp_path / "typo_of_mine.py", "def f(:\n")
    with pytest.raises(UserError, match=r"typo_of_mine.py, line 1: SyntaxError"):
        load_config(project, user_dir=str(code))
    with pytest.raises(UserError, match=r"No user directory"):
        load_config(project, user_dir=str(tmp_path / "absent"))


def test_dataclass_defaults_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Options:
        size: int
        arch: str = "needs_size"
        model_type: str | None = None

    class NeedsSize:
        Config = Options

    monkeypatch.setitem(catalog.models._objects, "needs_size", NeedsSize)
    with pytest.raises(ConfigError, match=r"test: model.size is missing"):
        resolve({"model": {"arch": "needs_size"}, "run": {"task": "learn"}}, origin="test")
