"""Stage 2 takes LAVIS's checkpoints, stage 1's and its own, and says what does not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavislite.common.errors import CheckpointError
from lavislite.models.base import BaseModel
from lavislite.models.blip2 import bridge
from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2OPT
from lavislite.models.blip2.weights import holds_tower, load_state, to_lavis
from lavislite.models.language.base import LanguageConfig, LoraOptions, build_language

from .reference import FOLDER, reference_model, tensors, tiny_eva
from .reference_stage2 import (
    DATA,
    KINDS,
    fresh_model,
    language_config,
    language_folder,
    reference_stage2,
    stage2_config,
    stage2_tensors,
)

POSITIONS = 64  # of the tiny Q-Former


@pytest.mark.parametrize("kind", KINDS)
def test_a_lavis_state_survives_the_round_trip(kind: str, tmp_path: Path) -> None:
    model, lavis = reference_stage2(kind, tmp_path), stage2_tensors(kind, "state")
    back = to_lavis(model.state_dict(), model.family, POSITIONS)
    assert back.keys() == lavis.keys()
    for name, tensor in lavis.items():
        assert torch.equal(back[name], tensor), name


# ---- published sizes


def published(name: str) -> dict[str, Any]:
    with gzip.open(DATA / "fullsize" / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def full_size_model(kind: str, language: dict[str, Any], folder: Path) -> Blip2LLM:
    """The published configuration on the meta device: names and shapes, no numbers."""
    from lavislite.models.vision.timm import TimmBackbone

    where = language_folder(kind, folder)
    content = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**content, **language}))
    options = {"weights": "none", "drop_blocks": 1, "final_norm": False}
    cls, config = KINDS[kind]
    with torch.device("meta"):
        vision = TimmBackbone("eva_giant_patch14_clip_224", **options).requires_grad_(False)
        cfg = config(
            qformer=QFormerConfig(init="none"),
            language=LanguageConfig(name=str(where), weights="none", end=None),
        )
        return cls(cfg, vision=vision, language=build_language(cfg.language))


@pytest.mark.parametrize("name", ["blip2_opt2.7b", "blip2_opt6.7b", "blip2_flant5xl"])
def test_every_published_key_and_shape(name: str, tmp_path: Path) -> None:
    expected = published(name)
    model = full_size_model("opt" if "opt" in name else "t5", expected["language"], tmp_path)
    assert model.parameter_counts == (
        expected["num_params_trainable"],
        expected["num_params_frozen"],
    )
    # LAVIS's files also hold the second names of the frozen language model's tied tensors.
    kept = {k: shape for k, shape in expected["checkpoint"].items() if k not in expected["tied"]}
    part = to_lavis(model.trainable_state_dict(), model.family)
    assert {key: list(t.shape) for key, t in part.items()} == kept
    whole = {k: list(t.shape) for k, t in to_lavis(model.state_dict(), model.family).items()}
    language = {k: shape for k, shape in whole.items() if k.startswith(f"{model.family}_model.")}
    assert len(language) == expected["llm_keys_count"]
    assert whole == {**expected["checkpoint"], **expected["frozen"], **language}
    # and the other way: neither a full nor a trainable-only checkpoint leaves anything out
    for theirs in (expected["checkpoint"], whole):
        state = {key: torch.empty(shape, device="meta") for key, shape in theirs.items()}
        load_state(model, state, name)


# ---- stage 1 into stage 2


def test_a_stage_one_checkpoint_of_lavis_starts_the_bridge(tmp_path: Path) -> None:
    model = fresh_model("opt", tmp_path)
    projection = model.llm_proj.weight.clone()
    model.load_pretrained(FOLDER / "eva_state.safetensors")
    lavis = tensors("eva_state")
    key = "bert.encoder.layer.2.crossattention.self.key.weight"
    assert torch.equal(model.Qformer.state_dict()[key], lavis[f"Qformer.{key}"])
    assert torch.equal(model.ln_vision.bias, lavis["ln_vision.bias"])
    assert torch.equal(model.llm_proj.weight, projection)


def save_run(model: BaseModel, run: Path) -> Path:
    """A run folder with one checkpoint, as the runner writes it."""
    folder = run / "checkpoints" / "step_1"
    folder.mkdir(parents=True)
    state = {k: v.detach().clone() for k, v in model.trainable_state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "meta.json").write_text(json.dumps({"identity": model.identity()}))
    (run / "checkpoints" / "last").symlink_to("step_1")
    return run


def test_our_stage_one_run_starts_stage_two_and_both_must_see_alike(tmp_path: Path) -> None:
    run = save_run(reference_model(), tmp_path / "run")
    model = fresh_model("opt", tmp_path)
    with pytest.raises(CheckpointError, match=r"trained with vision .* this model has vision"):
        model.load_pretrained(run)
    model.visual_encoder.load_state_dict(reference_model().visual_encoder.state_dict())
    model.load_pretrained(run)
    assert torch.equal(model.query_tokens, tensors("eva_state")["query_tokens"])


def test_another_number_of_queries_is_said_with_what_to_set(tmp_path: Path) -> None:
    model = fresh_model("opt", tmp_path, num_query_tokens=4)
    with pytest.raises(
        CheckpointError,
        match=r"has 8 query tokens of width 48, this model has 4 of width 48. Set "
        r"model.num_query_tokens=8 and model.qformer.hidden_size=48",
    ):
        model.load_pretrained(FOLDER / "eva_state.safetensors")


def test_a_projection_for_another_language_model_is_refused(tmp_path: Path) -> None:
    model = fresh_model("opt", tmp_path)
    state = dict(stage2_tensors("opt", "state"))
    state["opt_proj.weight"] = torch.zeros(80, 48)
    with pytest.raises(CheckpointError, match=r"language model of width 80, this model's is 64"):
        load_state(model, state, "here")


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    state = dict(stage2_tensors("opt", "state"))
    del state["ln_vision.bias"]
    with pytest.raises(CheckpointError, match=r"lacks 'ln_vision.bias'"):
        load_state(fresh_model("opt", tmp_path), state, "here")


# ---- the language model in a checkpoint


def test_second_names_and_old_constants_of_a_frozen_language_model_are_dropped(
    tmp_path: Path,
) -> None:
    model = fresh_model("opt", tmp_path)
    before = model.language.model.lm_head.weight.clone()
    lavis = stage2_tensors("opt", "state")
    state = {k: t for k, t in lavis.items() if not k.startswith(("opt_model.", "visual_encoder."))}
    state["opt_model.lm_head.weight"] = torch.zeros(7, 64)
    state["opt_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    path = tmp_path / "lavis.pth"
    torch.save({"model": state, "epoch": 1, "config": {}, "scaler": {}}, path)
    model.load_pretrained(path)
    assert torch.equal(model.language.model.lm_head.weight, before)
    assert torch.equal(model.llm_proj.weight, lavis["opt_proj.weight"])
    assert not holds_tower(path)
    assert holds_tower(DATA / "lavis_opt" / "state.safetensors")


def test_a_checkpoint_of_ours_comes_back_and_names_what_it_rests_on(tmp_path: Path) -> None:
    first = reference_stage2("opt", tmp_path)
    assert set(first.identity()) == {"vision", "language", "language_tokenizer"}
    assert not [n for n in first.trainable_state_dict() if n.startswith(("language", "visual"))]
    run = save_run(first, tmp_path / "run")
    second = fresh_model("opt", tmp_path)
    with pytest.raises(CheckpointError, match=r"trained with (vision|language) '"):
        second.load_pretrained(run)
    second.load_pretrained(DATA / "lavis_opt" / "state.safetensors")
    with torch.no_grad():
        second.llm_proj.weight.zero_()
    # The same weights in another folder are the same language model.
    second.cfg.language.name = "somewhere/else"
    second.load_pretrained(run)
    assert torch.equal(second.llm_proj.weight, first.llm_proj.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_that_trains_is_in_the_checkpoint_once(kind: str, tmp_path: Path) -> None:
    language = language_config(kind, tmp_path, freeze=False)
    first = reference_stage2(kind, tmp_path, language=language)
    assert "language" not in first.identity()
    names = [n for n in first.trainable_state_dict() if n.startswith("language.")]
    tied = {"opt": "language.model.lm_head.weight"}.get(kind, "language.model.encoder.embed_tokens")
    assert names
    assert not any(name.startswith(tied) for name in names)
    run = save_run(first, tmp_path / "run")
    second = fresh_model(kind, tmp_path, language=language)
    second.visual_encoder.load_state_dict(first.visual_encoder.state_dict())
    second.load_pretrained(run)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_adapters_train_and_their_checkpoint_says_so(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    language = language_config("opt", tmp_path, lora=LoraOptions(rank=2))
    model = reference_stage2("opt", tmp_path, language=language)
    plain = reference_stage2("opt", tmp_path)
    # The frozen weights below the adapters are those of the model without.
    assert model.identity() == plain.identity()
    trained = model.trainable_state_dict()
    assert {n for n in trained if n.startswith("language.")} == {n for n in trained if "lora_" in n}
    run = save_run(model, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds LoRA weights .* Set model.language.lora"):
        plain.load_pretrained(run)
    model.load_pretrained(run)


# ---- building


def test_weights_that_a_checkpoint_brings_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def build(cfg: Any) -> torch.nn.Module:
        asked.append(cfg.weights)
        return tiny_eva()

    monkeypatch.setattr(bridge, "build_vision", build)
    whole = DATA / "lavis_opt" / "state.safetensors"
    part = tmp_path / "part.safetensors"
    lavis = stage2_tensors("opt", "state")
    save_file({k: t for k, t in lavis.items() if not k.startswith("visual_encoder.")}, part)
    for source in (whole, part):
        cfg = stage2_config("opt", tmp_path, pretrained=str(source))
        cfg.qformer.init = "bert-base-uncased"  # cannot be had here, and is not asked for
        Blip2OPT.from_config(cfg)
    assert asked == ["none", None]


def test_stage_two_without_stage_one_starts_from_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    bert = BertModel(BertConfig(vocab_size=254, hidden_size=48, **sizes))
    bert.save_pretrained(tmp_path / "bert")
    cfg = stage2_config("opt", tmp_path)
    cfg.qformer.init = str(tmp_path / "bert")
    model = Blip2OPT.from_config(cfg, vision=tiny_eva())
    own, theirs = model.Qformer.state_dict(), bert.state_dict()
    for name in ("attention.self.key.weight", "output_query.dense.weight"):
        source = theirs["encoder.layer.3." + name.replace("_query", "")]
        assert torch.equal(own["bert.encoder.layer.3." + name], source)
