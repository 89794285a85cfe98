"""Project files written for LAVIS mean the same here; what has no meaning is said, once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lavislite.common import catalog, lavis_compat
from lavislite.common import logging as our_logging
from lavislite.common.config import Config, load_config
from lavislite.common.errors import ConfigError
from lavislite.common.packaged import packaged_defaults

from .components import Builder, Model, RetrievalTask, Task

PROJECTS = Path(__file__).parents[1] / "data" / "lavis_projects"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, names in (
        (catalog.models, {"blip2": Model}),
        (
            catalog.datasets,
            {"coco_caption": Builder, "coco_retrieval": Builder, "vg_caption": Builder},
        ),
        (catalog.tasks, {"image_text_pretrain": Task, "retrieval": RetrievalTask}),
    ):
        monkeypatch.setattr(registry, "_objects", {**registry._objects, **names})
    monkeypatch.setattr(our_logging, "_warned", set())


def load(name: str, *options: str) -> Config:
    return load_config(PROJECTS / f"{name}.yaml", options)


def test_stage_one_project() -> None:
    cfg = load("pretrain_stage1")
    model, run, data = cfg.model, cfg.run, cfg.datasets["coco_caption"]
    assert (model.vision.name, model.vision.image_size) == ("eva_clip_g", 224)
    assert (model.vision.precision, model.vision.freeze) == ("fp16", True)
    assert model.num_query_tokens == 16
    assert model.pretrained is None  # load_pretrained: False
    assert data.annotations["train"] == "/data/coco/karpathy_train.json"
    assert data.images == "/data/coco/images/"
    assert data.vis_processor["train"] == {"name": "blip2_image_train", "image_size": 224}
    assert data.ratio == 2.0
    assert (run.runner, run.max_steps, run.eval_every_steps) == ("runner_base", 60000, 6000)
    assert (run.precision, run.clip_grad_norm, run.resume) == ("auto", 1.0, None)
    assert run.init_lr == 1e-4


def test_retrieval_project() -> None:
    cfg = load("retrieval_coco_ft")
    published = packaged_defaults("models", "blip2", "pretrain")["model"]["pretrained"]
    assert cfg.model.pretrained == published  # load_finetuned: False starts from stage 1
    assert (cfg.model.vision.image_size, cfg.model.vision.freeze) == (364, False)
    assert (cfg.model.vision.grad_checkpointing, cfg.model.vision.drop_path_rate) == (True, 0.1)
    assert (cfg.run.k_test, cfg.run.precision, cfg.run.evaluate) == (128, "fp32", True)
    assert cfg.run.resume == "output/BLIP2/earlier/checkpoint_3.pth"
    assert cfg.run.lr_layer_decay == 0.95


def test_lavis_keys_work_as_options_too() -> None:
    cfg = load(
        "pretrain_stage1", "model.vit_model=clip_L", "run.amp=False", "model.finetuned=a.pth"
    )
    assert (cfg.model.vision.name, cfg.run.precision) == ("clip_L", "fp32")
    assert cfg.model.pretrained == "a.pth"


def test_a_dropped_key_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load("pretrain_stage1")
        load("pretrain_stage1")
    text = caplog.text
    for key in ("run.world_size", "run.dist_url", "run.distributed", "coco_caption.data_type"):
        assert text.count(key) == 1


def test_a_key_the_component_declares_is_its_own() -> None:
    data = {"image_size": 3, "vit_model": "x"}
    assert lavis_compat.translate_model(data, {"image_size", "pretrained"}) == data


def test_the_lemmatizer_of_a_model_is_a_task_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ours = lavis_compat.translate_model({"apply_lemmatizer": True, "prompt": "x"}, {"prompt"})
    assert ours == {"prompt": "x"}
    assert "model.apply_lemmatizer has no effect: run.task: ok_vqa" in caplog.text


def test_both_spellings_ours_wins() -> None:
    data = {"freeze_vit": True, "vision": {"freeze": False}}
    assert lavis_compat.translate_model(data, {"vision"}) == {"vision": {"freeze": False}}
    with pytest.raises(ConfigError, match=r"model.freeze_vit.*vision: tiny"):
        lavis_compat.translate_model({"freeze_vit": True, "vision": "tiny"}, {"vision"})


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"load_finetuned": True, "finetuned": "f", "pretrained": "p"}, "f"),
        ({"load_finetuned": False, "finetuned": "f", "pretrained": "p"}, "p"),
        ({"finetuned": "", "pretrained": "p"}, "p"),
        ({"load_pretrained": False, "pretrained": "p"}, None),
        ({"load_finetuned": False}, "stage1"),
    ],
)
def test_which_weights_are_loaded(weights: dict[str, object], expected: str | None) -> None:
    ours = lavis_compat.translate_model(weights, {"pretrained"}, "stage1")
    assert ours == {"pretrained": expected}


def test_downloads_and_copies_of_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path))
    (tmp_path / "b.json").write_text("[]")
    info = {
        "annotations": {
            "train": {"url": ["https://x.org/a.json", "https://x.org/b.json"]}
            | {"storage": ["a.json", "b.json"]},
            "val": {"storage": "v.json"},
        }
    }
    ours = lavis_compat.translate_dataset("d", {"build_info": info}, {"annotations"})
    assert ours == {
        "annotations": {
            "train": ["https://x.org/a.json", str(tmp_path / "b.json")],
            "val": "v.json",
        }
    }


@pytest.mark.parametrize("name", ["pretrain_stage1", "retrieval_coco_ft"])
def test_projects_fit_the_real_components(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cfg = load(name)
    assert cfg.model.vision.name == "eva_clip_g"
    assert {options.vis_processor["train"]["image_size"] for options in cfg.datasets.values()} <= {
        224,
        364,
    }
