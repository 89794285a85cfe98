"""The public calls, with LAVIS's names and arguments."""

from __future__ import annotations

import inspect
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lavislite
from lavislite import registry
from lavislite.common.config import resolve
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.packaged import packaged_defaults, packaged_types
from lavislite.common.trained import remember_run
from lavislite.zoo import (
    dataset_zoo,
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
)


@dataclass
class Options:
    arch: str = "blip2"
    model_type: str | None = None
    pretrained: str | None = None
    vision: Any = None
    num_query_tokens: int = 1


class Model(nn.Module):
    Config = Options

    def __init__(self, cfg: Options) -> None:
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.randn(3).half())

    @classmethod
    def from_config(cls, cfg: Options) -> Model:
        return cls(cfg)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("blip2", "blip2_feature_extractor"):
        monkeypatch.setitem(registry.models._objects, name, Model)


@pytest.mark.usefixtures("stand_in")
def test_load_model_uses_the_published_configuration() -> None:
    model = load_model("blip2_feature_extractor", "coco")
    assert model.cfg.arch == "blip2_feature_extractor"
    assert model.cfg.vision["image_size"] == 364
    assert str(model.cfg.pretrained).endswith("blip2_finetune_coco.pth")
    assert not model.training
    assert model.weight.dtype == torch.float32  # evaluation on the CPU


@pytest.mark.usefixtures("stand_in")
def test_the_device_may_be_an_object_and_the_checkpoint_a_file() -> None:
    model = load_model("blip2", "pretrain", device=torch.device("cpu"), checkpoint="mine.pth")
    assert model.weight.dtype == torch.float32
    assert model.cfg.pretrained == "mine.pth"
    assert load_model("blip2", "pretrain", is_eval=False).training


@pytest.mark.usefixtures("stand_in")
def test_load_model_and_preprocess() -> None:
    _, vis, txt = load_model_and_preprocess("blip2", "pretrain", is_eval=True)
    assert set(vis) == set(txt) == {"train", "eval"}
    assert vis["eval"].image_size == 224
    assert isinstance(txt["eval"]("A cat."), str)


def test_load_preprocess_takes_a_part() -> None:
    vis, txt = load_preprocess({"vis_processor": {"eval": {"name": "blip_image_eval"}}})
    assert set(vis) == {"eval"}
    assert txt == {}


def test_signatures_are_those_of_lavis() -> None:
    def names(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(lavislite.load_model) == ["name", "model_type", "is_eval", "device", "checkpoint"]
    assert names(lavislite.load_model_and_preprocess)[:4] == [
        "name",
        "model_type",
        "is_eval",
        "device",
    ]
    assert names(lavislite.load_preprocess) == ["config"]
    assert names(lavislite.load_dataset)[:4] == ["name", "cfg_path", "vis_path", "data_type"]


def test_lavis_import_paths() -> None:
    from lavislite.datasets.builders import dataset_zoo as zoo
    from lavislite.datasets.builders import load_dataset
    from lavislite.models import load_model as theirs

    assert theirs is load_model
    assert zoo is dataset_zoo
    assert load_dataset is lavislite.load_dataset
    with pytest.raises(ImportError):
        from lavislite.models import absent  # noqa: F401


@pytest.mark.usefixtures("stand_in")
def test_unknown_names_and_types() -> None:
    with pytest.raises(UserError, match=r"Unknown model 'blip3'. Did you mean 'blip2'"):
        load_model("blip3", "pretrain")
    with pytest.raises(ConfigError, match=r"'pretran'. Did you mean 'pretrain'\? Known: coco"):
        load_model("blip2", "pretran")


def test_aliases_share_files() -> None:
    for name in ("blip2_feature_extractor", "blip2_image_text_matching"):
        assert packaged_types("models", name) == packaged_types("models", "blip2")
        assert packaged_defaults("models", name, "coco") == packaged_defaults(
            "models", "blip2", "coco"
        )


@pytest.mark.usefixtures("stand_in")
def test_the_playground_model_is_the_last_one_trained_here(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python train.py --cfg-path projects/blip2"):
        load_model("blip2", "playground")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model: {arch: blip2, num_query_tokens: 7}\n")
    remember_run("projects/blip2/pretrain_stage1.yaml", tmp_path / "run")
    model = load_model("blip2_feature_extractor", "playground")
    assert (model.cfg.num_query_tokens, model.cfg.arch) == (7, "blip2_feature_extractor")
    assert model.cfg.pretrained == str(tmp_path / "run")


@pytest.mark.usefixtures("stand_in")
def test_a_run_is_loaded_as_it_was_configured(tmp_path: Path) -> None:
    step = tmp_path / "checkpoints/step_5"
    step.mkdir(parents=True)
    config = """
model: {arch: blip2, num_query_tokens: 7}
datasets:
  images_only: null
  mine: {vis_processor: {eval: {name: blip_image_eval, image_size: 72}}}
run: {seed: 3}
"""
    for folder, mark in ((tmp_path, "run.json"), (step, "meta.json")):
        (folder / "config.yaml").write_text(config)
        (folder / mark).write_text("{}")
    for checkpoint in (tmp_path, step, step / "model.safetensors"):
        model, vis, _ = load_model_and_preprocess(
            "blip2_feature_extractor", is_eval=True, checkpoint=checkpoint
        )
        assert (model.cfg.num_query_tokens, model.cfg.pretrained) == (7, str(checkpoint))
        assert vis["eval"].image_size == 72
        # Frozen random parts follow from the seed.
        assert torch.equal(model.weight, load_model("blip2", checkpoint=tmp_path).weight)
    assert load_model("blip2", "pretrain", checkpoint=tmp_path).cfg.num_query_tokens == 32
    plain = load_model("blip2", checkpoint=tmp_path / "other/model.pth")
    assert plain.cfg.num_query_tokens == 32


PUBLISHED = {
    "blip2_opt": [
        *("caption_coco_opt2.7b", "caption_coco_opt6.7b", "playground"),
        *("pretrain_opt2.7b", "pretrain_opt6.7b"),
    ],
    "blip2_t5": [
        *("caption_coco_flant5xl", "playground"),
        *("pretrain_flant5xl", "pretrain_flant5xl_vitL", "pretrain_flant5xxl"),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_stage_two_models(name: str) -> None:
    assert packaged_types("models", name) == PUBLISHED[name]
    for model_type in PUBLISHED[name]:
        if model_type == "playground":
            continue
        cfg = resolve({"model": {"arch": name, "model_type": model_type}}, origin="here").model
        cfg.check()
        size = model_type.rpartition("_opt")[2] if name == "blip2_opt" else model_type
        assert size.removeprefix("pretrain_").removeprefix("caption_coco_") in cfg.pretrained
        captions = model_type.startswith("caption")
        assert (cfg.vision.image_size, cfg.vision.freeze) == (
            (364, False) if captions else (224, True)
        )
        if name == "blip2_opt":
            assert (cfg.language.end, cfg.prompt) == ("\n", "a photo of " if captions else "")
        else:
            assert cfg.language.options == {"dense_act_fn": "gelu"}
            assert cfg.prompt == ("a photo of" if captions else "")


def test_captioning_starts_from_stage_two_when_asked_to() -> None:
    model = {"arch": "blip2_t5", "model_type": "caption_coco_flant5xl", "load_finetuned": False}
    cfg = resolve({"model": model}, origin="here").model
    assert cfg.pretrained.endswith("blip2_pretrained_flant5xl.pth")


def stage_two_run(folder: Path) -> Path:
    """A finished run of `blip2_t5`, its frozen parts random from the seed."""
    from safetensors.torch import save_file
    from transformers import T5Config

    from lavislite.build import build_model

    sizes = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "max_positions": 64}
    vision = {"name": "tiny", "image_size": 16, "weights": "none"}
    shutil.copytree(Path(__file__).parent / "data/lavis_t5/tokenizer", folder / "t5")
    small = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    T5Config(vocab_size=140, decoder_start_token_id=0, **small).save_pretrained(folder / "t5")
    language = {"name": str(folder / "t5"), "weights": "none"}
    model = {"arch": "blip2_t5", "vision": vision, "language": language, "num_query_tokens": 4}
    cfg = resolve({"model": {**model, "qformer": sizes}, "run": {"seed": 5}}, origin="here")
    built = build_model(cfg)
    step = folder / "run/checkpoints/step_1"
    step.mkdir(parents=True)
    with torch.no_grad():
        built.llm_proj.bias.fill_(0.25)
    state = {k: v.detach().clone() for k, v in built.trainable_state_dict().items()}
    save_file(state, step / "model.safetensors")
    (step / "meta.json").write_text(json.dumps({"identity": built.identity()}))
    (step.parent / "last").symlink_to("step_1")
    (folder / "run/config.yaml").write_text(cfg.to_yaml())
    (folder / "run/run.json").write_text("{}")
    return folder / "run"


def test_the_playground_model_of_stage_two_writes(tmp_path: Path) -> None:
    from PIL import Image

    run = stage_two_run(tmp_path)
    remember_run("projects/blip2/pretrain_stage2_t5.yaml", run)
    torch.manual_seed(7)
    model, vis, _ = load_model_and_preprocess("blip2_t5", model_type="playground", is_eval=True)
    assert model.llm_proj.bias.eq(0.25).all()
    assert not model.training
    vis["eval"].image_size = 16
    image = vis["eval"](Image.new("RGB", (20, 20), "red")).unsqueeze(0)
    texts = model.generate({"image": image}, num_beams=2, max_new_tokens=3)
    assert len(texts) == 1
    assert load_model("blip2_t5", checkpoint=run).llm_proj.bias.eq(0.25).all()


@pytest.mark.usefixtures("stand_in")
def test_another_stages_run_does_not_say_what_a_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lavislite.models.blip2.stage2 import Blip2OPTConfig

    class Stage2(Model):
        Config = Blip2OPTConfig

    monkeypatch.setitem(registry.models._objects, "blip2_opt", Stage2)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("model: {arch: blip2, num_query_tokens: 7}\n")
    cfg = load_model("blip2_opt", checkpoint=tmp_path).cfg
    assert (cfg.num_query_tokens, cfg.language.name) == (32, "facebook/opt-2.7b")
    assert cfg.pretrained == str(tmp_path)


def test_zoos_print_and_iterate() -> None:
    assert "blip2_image_text_matching" in str(model_zoo)
    assert dict(model_zoo)["blip2"] == ["coco", "playground", "pretrain", "pretrain_vitL"]
    assert len(model_zoo) == len(registry.models.names())
    assert "image_caption" in dataset_zoo.get_names()
    assert "coco_retrieval" in str(dataset_zoo)


def test_import_is_instant() -> None:
    code = "import sys, lavislite; assert not {'torch', 'omegaconf', 'numpy'} & set(sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because the machine may be busy; starting Python is included.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
