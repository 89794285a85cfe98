"""Hugging Face towers: tiny random ones of each family, from a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.models.vision.base import VisionConfig, build_vision

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# class -> (configuration, number of tokens)
FAMILIES = {
    "CLIPVisionModel": (transformers.CLIPVisionConfig(**SMALL), 17),
    "SiglipVisionModel": (transformers.SiglipVisionConfig(**SMALL), 16),
    "ViTModel": (transformers.ViTConfig(**SMALL), 17),
    "BeitModel": (transformers.BeitConfig(**SMALL), 17),
    "Dinov2Model": (transformers.Dinov2Config(**SMALL), 17),
    "Dinov2WithRegistersModel": (
        transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=4),
        21,
    ),
    "DINOv3ViTModel": (transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=2), 19),
    "ConvNextModel": (
        transformers.ConvNextConfig(
            hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32
        ),
        16,
    ),
    "SwinModel": (
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        16,
    ),
    "Blip2VisionModel": (transformers.Blip2VisionConfig(**SMALL), 17),
}


def save(tmp_path: Path, family: str) -> Path:
    config, _ = FAMILIES[family]
    getattr(transformers, family)(config).save_pretrained(tmp_path / family)
    return tmp_path / family


def build(folder: Path, **options: object) -> torch.nn.Module:
    return build_vision(VisionConfig(name=f"hf:{folder}", image_size=32, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_tokens(tmp_path: Path, family: str) -> None:
    backbone = build(save(tmp_path, family))
    tokens = backbone(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, FAMILIES[family][1], backbone.num_features)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("family", ["CLIPVisionModel", "ViTModel", "SiglipVisionModel"])
def test_the_weights_in_the_folder_are_loaded(tmp_path: Path, family: str) -> None:
    folder = save(tmp_path, family)
    images = torch.randn(2, 3, 32, 32)
    direct = getattr(transformers, family).from_pretrained(folder).eval()
    torch.testing.assert_close(build(folder)(images), direct(images).last_hidden_state)


def test_weights_may_lie_elsewhere_and_must_be_complete(tmp_path: Path) -> None:
    folder, other = save(tmp_path, "ViTModel"), tmp_path / "other"
    donor = transformers.ViTModel(FAMILIES["ViTModel"][0])
    donor.save_pretrained(other)
    images = torch.randn(1, 3, 32, 32)
    expected = donor.eval()(images).last_hidden_state
    for weights in (other, other / "model.safetensors"):
        torch.testing.assert_close(build(folder, weights=str(weights))(images), expected)
    with pytest.raises(UserError, match="Did you mean 'model.safetensors'"):
        build(folder, weights=str(other / "modle.safetensors"))
    clip = save(tmp_path, "CLIPVisionModel")
    with pytest.raises(CheckpointError, match=r"does not hold the weights .* it lacks \d+ tensors"):
        build(folder, weights=str(clip / "model.safetensors"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("ConvNextModel", "SwinModel")])
def test_penultimate_features_are_the_hidden_state_before_the_last(
    tmp_path: Path, family: str
) -> None:
    folder = save(tmp_path, family)
    images = torch.randn(2, 3, 32, 32)
    direct = getattr(transformers, family).from_pretrained(folder).eval()
    expected = direct(images, output_hidden_states=True).hidden_states[-2]
    backbone = build(folder, drop_blocks=1, final_norm=False)
    assert len(backbone.blocks) == 2
    torch.testing.assert_close(backbone(images), expected)


def test_a_whole_clip_gives_its_image_encoder(tmp_path: Path) -> None:
    vision = FAMILIES["CLIPVisionModel"][0].to_dict()
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text))
    clip.save_pretrained(tmp_path / "clip")
    backbone = build(tmp_path / "clip")
    assert type(backbone.model).__name__ == "CLIPVisionModel"
    ours = dict(backbone.model.named_parameters())
    name = next(n for n in ours if n.endswith("patch_embedding.weight"))
    torch.testing.assert_close(
        ours[name].detach(), clip.vision_model.embeddings.patch_embedding.weight.detach()
    )


def test_another_image_size_interpolates_positions(tmp_path: Path) -> None:
    backbone = build_vision(VisionConfig(name=f"hf:{save(tmp_path, 'ViTModel')}", image_size=48))
    assert backbone(torch.randn(1, 3, 48, 48)).shape == (1, 37, 24)


def test_statistics_come_from_the_image_processor(tmp_path: Path) -> None:
    folder = save(tmp_path, "ViTModel")
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = build(folder)
    assert backbone.image_mean == (0.1, 0.2, 0.3)
    assert backbone.image_std == (0.4, 0.5, 0.6)


def test_statistics_inside_a_processor_file_are_found(tmp_path: Path) -> None:
    folder = save(tmp_path, "ViTModel")
    config = {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}}
    (folder / "processor_config.json").write_text(json.dumps(config))
    assert build(folder).image_std == (0.25,) * 3


@pytest.mark.parametrize("family", ["CLIPVisionModel", "SiglipVisionModel", "Dinov2Model"])
def test_every_parameter_that_trains_gets_a_gradient(tmp_path: Path, family: str) -> None:
    backbone = build(save(tmp_path, family), freeze=False)
    backbone(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_frozen_towers_load_in_their_compute_dtype(tmp_path: Path) -> None:
    folder = save(tmp_path, "ViTModel")
    assert next(build(folder, precision="bf16").parameters()).dtype == torch.bfloat16
    assert next(build(folder, precision="bf16", freeze=False).parameters()).dtype == torch.float32


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    folder = save(tmp_path, "ViTModel")
    with pytest.raises(UserError, match="Did you mean 'ViTModel'"):
        build(tmp_path / "VitModel")
    with pytest.raises(ConfigError, match="has 3 blocks, cannot drop 3"):
        build(folder, drop_blocks=3)
    for family in ("SwinModel", "ConvNextModel"):
        with pytest.raises(ConfigError, match="stages of different widths"):
            build(save(tmp_path, family), drop_blocks=1)
    transformers.Siglip2VisionConfig(
        **{k: v for k, v in SMALL.items() if k != "image_size"}
    ).save_pretrained(tmp_path / "naflex")
    with pytest.raises(ConfigError, match="NaFlex"):
        build(tmp_path / "naflex")
