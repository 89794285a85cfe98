"""LAVIS's published checkpoints fit by name and shape, and what does not fit says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavislite.common.errors import CheckpointError, UserError
from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer
from lavislite.models.blip2.text import build_tokenizer, save_tokenizer
from lavislite.models.blip2.weights import checkpoint_in, from_lavis, load_state, to_lavis

from .reference import FOLDER, reference_model, tensors, tiny_config, tiny_eva

FULLSIZE = FOLDER.parent / "fullsize"


def test_a_lavis_state_survives_the_round_trip() -> None:
    model, lavis = reference_model(), tensors("eva_state")
    back = to_lavis(model.state_dict())
    assert back.keys() == lavis.keys()
    for name, tensor in lavis.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor), name


def published(name: str) -> dict[str, Any]:
    with gzip.open(FULLSIZE / f"blip2_qformer_{name}.json.gz", "rt") as file:
        return json.load(file)


def full_size_model(tower: str, image_size: int, freeze: bool) -> Blip2Qformer:
    """The published configuration on the meta device: names and shapes, no numbers."""
    from lavislite.models.vision.timm import TimmBackbone

    class Words:
        pad_token_id = 0

        def __len__(self) -> int:
            return 30_523

    with torch.device("meta"):
        options = {"drop_blocks": 1, "final_norm": False, "weights": "none"}
        vision = TimmBackbone(tower, image_size=image_size, **options)
        cfg = Blip2Config(qformer=QFormerConfig(init="none"))
        return Blip2Qformer(cfg, vision=vision.requires_grad_(not freeze), tokenizer=Words())


@pytest.mark.parametrize(
    ("name", "tower", "image_size", "freeze"),
    [
        ("eva_clip_g_224", "eva_giant_patch14_clip_224", 224, True),
        ("eva_clip_g_364_unfrozen", "eva_giant_patch14_clip_224", 364, False),
        ("clip_L_224", "vit_large_patch14_clip_quickgelu_224", 224, True),
    ],
)
def test_every_published_key_and_shape(
    name: str, tower: str, image_size: int, freeze: bool
) -> None:
    model, expected = full_size_model(tower, image_size, freeze), published(name)
    assert model.parameter_counts == (
        expected["num_params_trainable"],
        expected["num_params_frozen"],
    )
    found = {key: list(t.shape) for key, t in to_lavis(model.trainable_state_dict()).items()}
    assert found == expected["checkpoint"]
    everything = {**expected["checkpoint"], **expected["frozen"]}
    assert {k: list(t.shape) for k, t in to_lavis(model.state_dict()).items()} == everything
    # and the other way: neither a full nor a trainable-only checkpoint leaves anything out
    for theirs in (expected["checkpoint"], everything):
        state = {key: torch.empty(shape, device="meta") for key, shape in theirs.items()}
        load_state(model, state, name)


# ---- loading


def lavis_file(folder: Path, *, drop: str = "visual_encoder.") -> Path:
    """A file as LAVIS writes it: trainable weights under "model", beside other things."""
    state = {k: v for k, v in tensors("eva_state").items() if not k.startswith(drop)}
    path = folder / "checkpoint.pth"
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3, "config": {}}, path)
    return path


def fresh(**changes: Any) -> Blip2Qformer:
    return Blip2Qformer(
        tiny_config(**changes), vision=tiny_eva(), tokenizer=build_tokenizer(str(FOLDER))
    )


def test_a_lavis_pth_without_its_frozen_tower(tmp_path: Path) -> None:
    model, lavis = fresh(), tensors("eva_state")
    tower = model.visual_encoder.pos_embed.clone()
    model.load_pretrained(lavis_file(tmp_path))
    assert torch.equal(model.itm_head.weight, lavis["itm_head.weight"])
    assert model.temp.item() == lavis["temp"].item()
    assert torch.equal(model.visual_encoder.pos_embed, tower)


def test_a_tower_in_the_checkpoint_is_loaded_into_a_frozen_one() -> None:
    model, lavis = fresh(), tensors("eva_state")
    model.load_pretrained(FOLDER / "eva_state.safetensors")
    assert torch.equal(model.visual_encoder.pos_embed, lavis["visual_encoder.pos_embed"])


@pytest.mark.parametrize("grid", [6, 3])
def test_positions_of_another_image_size_are_interpolated_as_by_the_original(grid: int) -> None:
    expected = tensors("pos_embed_interpolation")
    state = dict(tensors("eva_state"))
    state["visual_encoder.pos_embed"] = expected["input_grid4_plus_cls"].repeat(1, 1, 11)[..., :64]

    model = fresh()
    shape = (1, grid * grid + 1, 64)
    model.visual_encoder.pos_embed = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)
    load_state(model, state, "here")
    torch.testing.assert_close(
        model.visual_encoder.pos_embed[..., :6], expected[f"eva_grid{grid}"], rtol=1e-5, atol=1e-5
    )


def test_another_width_is_named_with_both_shapes() -> None:
    cfg = tiny_config()
    cfg.qformer.hidden_size = 32
    model = Blip2Qformer(cfg, vision=tiny_eva(), tokenizer=build_tokenizer(str(FOLDER)))
    with pytest.raises(CheckpointError, match=r"has shape \[.*48.*\], this model needs \[.*32"):
        model.load_pretrained(FOLDER / "eva_state.safetensors")


def test_missing_and_unknown_names_are_named() -> None:
    state = dict(tensors("eva_state"))
    state["itm_haed.weight"] = state.pop("itm_head.weight")
    with pytest.raises(CheckpointError, match=r"lacks 'itm_head.weight'.*unknown 'itm_haed") as e:
        load_state(fresh(), state, "file.pth")
    assert "file.pth" in str(e.value)
    assert "Did you mean 'itm_head.weight'?" in str(e.value)


def test_an_untied_copy_of_the_decoder_stands_in_for_missing_words() -> None:
    lavis = dict(tensors("eva_state"))
    words = lavis.pop("Qformer.bert.embeddings.word_embeddings.weight")
    assert torch.equal(from_lavis(lavis)["Qformer.bert.embeddings.word_embeddings.weight"], words)


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        model = reference_model()
        with torch.no_grad():
            model.temp.fill_(0.01 * step)
        folder = tmp_path / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        save_file(
            {k: v.detach().clone() for k, v in model.trainable_state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "meta.json").write_text(json.dumps({"identity": model.identity()}))
    (tmp_path / "checkpoints" / "last").symlink_to("step_2")
    assert checkpoint_in(tmp_path).name == "step_2"
    (tmp_path / "checkpoints" / "checkpoint_best").symlink_to("step_1")

    model = reference_model()
    model.load_pretrained(tmp_path)
    assert model.temp.item() == pytest.approx(0.01)

    with torch.no_grad():
        model.visual_encoder.pos_embed.add_(1.0)
    with pytest.raises(CheckpointError, match=r"trained with vision .* this model has vision"):
        model.load_pretrained(tmp_path)


def test_the_tokenizer_of_a_run_is_used_again(tmp_path: Path) -> None:
    from lavislite.models.blip2.weights import run_tokenizer

    assert run_tokenizer(None) is None
    assert run_tokenizer(str(tmp_path)) is None
    save_tokenizer(build_tokenizer(str(FOLDER)), tmp_path / "tokenizer")
    (tmp_path / "checkpoints" / "step_5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last").symlink_to("step_5")
    assert run_tokenizer(str(tmp_path)) == str(tmp_path / "tokenizer")
    assert run_tokenizer(str(tmp_path / "checkpoints/step_5")) == str(tmp_path / "tokenizer")
    (tmp_path / "checkpoints/step_5/meta.json").write_text("{}")
    weights = tmp_path / "checkpoints/step_5/model.safetensors"
    weights.write_bytes(b"")
    assert run_tokenizer(str(weights)) == str(tmp_path / "tokenizer")
    assert run_tokenizer("https://example.org/weights.pth") is None
    with pytest.raises(UserError, match="No checkpoint .*step_6"):
        run_tokenizer(str(tmp_path / "checkpoints/step_6"))


# ---- BERT


def tiny_bert(folder: Path, *, words: int = 254, width: int = 48) -> dict[str, torch.Tensor]:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(
        BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(folder)
    return model.state_dict()


def with_init(init: str) -> Blip2Qformer:
    cfg = tiny_config()
    cfg.qformer.init = init
    model = Blip2Qformer.from_config(cfg, vision=tiny_eva())
    assert isinstance(model, Blip2Qformer)
    return model


def check_against_bert(model: Blip2Qformer, bert: dict[str, torch.Tensor]) -> None:
    own = model.Qformer.state_dict()
    words = own["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words[:254], bert["bert.embeddings.word_embeddings.weight"])
    assert 0 < words[254].std() < 0.05  # [DEC] is new
    for layer in range(4):
        name = f"bert.encoder.layer.{layer}."
        for part in (
            "attention.self.key.bias",
            "output.LayerNorm.weight",
            "intermediate.dense.weight",
        ):
            assert torch.equal(own[name + part], bert[name + part])
        ffn = bert[name + "output.dense.weight"]
        assert torch.equal(own[name + "output_query.dense.weight"], ffn)
    fresh = own["bert.encoder.layer.2.crossattention.self.key.weight"]
    assert fresh.std().item() == pytest.approx(0.02, rel=0.2)


def test_a_qformer_starts_from_bert(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path)
    model = with_init(str(tmp_path))
    check_against_bert(model, bert)
    head = "cls.predictions.transform.dense.weight"
    assert torch.equal(model.Qformer.state_dict()[head], bert[head])


def test_old_names_and_a_model_without_head(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path)
    old = {
        k.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in bert.items()
        if k.startswith("bert.")
    }
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    check_against_bert(with_init(str(tmp_path)), bert)


def test_a_bert_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path, width=32)
    with pytest.raises(CheckpointError, match="needs"):
        with_init(str(tmp_path))


def test_auto_starts_afresh_when_bert_does_not_fit_or_cannot_be_had() -> None:
    with_init("auto")
    with pytest.raises(UserError, match=r"qformer.init: bert.*model.safetensors.*Put it into"):
        with_init("bert-base-uncased")
