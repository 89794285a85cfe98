"""timm's networks and BLIP-2's two presets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.models.vision.base import VisionConfig, build_vision
from lavislite.models.vision.names import clip_to_timm, timm_to_clip
from lavislite.models.vision.positions import interpolate_positions
from lavislite.models.vision.presets import clip_l, eva_clip_g

REFERENCE = Path(__file__).parents[2] / "data" / "lavis_stage1"
TINY_EVA: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.6}
TINY_CLIP: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def build(name: str, image_size: int = 64, **options: Any) -> Any:
    options.setdefault("weights", "none")
    return build_vision(VisionConfig(name=f"timm:{name}", image_size=image_size, **options))


def tower_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "tower.safetensors")
    return str(tmp_path / "tower.safetensors")


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("test_vit", 17), ("test_resnet", 4), ("test_convnext", 4), ("test_efficientnet", 4)],
)
def test_transformers_and_feature_maps_become_tokens(name: str, tokens: int) -> None:
    backbone = build(name)
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, tokens, backbone.num_features)
    assert len(backbone.image_mean) == 3


def test_feature_maps_keep_their_pixels() -> None:
    backbone = build("test_resnet")
    images = torch.randn(1, 3, 64, 64)
    maps = backbone.model.forward_features(images)
    torch.testing.assert_close(backbone(images)[0, 1], maps[0, :, 0, 1])


def test_penultimate_features_come_from_the_block_before_the_last() -> None:
    torch.manual_seed(0)
    whole = build("test_vit")
    images = torch.randn(1, 3, 64, 64)
    expected = whole.model.forward_intermediates(
        images, indices=[len(whole.blocks) - 2], norm=False, output_fmt="NLC",
        return_prefix_tokens=True, intermediates_only=True,
    )[0]  # fmt: skip
    torch.manual_seed(0)
    cut = build("test_vit", drop_blocks=1, final_norm=False)
    torch.testing.assert_close(cut(images)[:, 1:], expected[0])


def test_weights_from_a_file_and_files_that_do_not_fit(tmp_path: Path) -> None:
    whole = build("test_vit")
    path = tower_file(tmp_path, whole.model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(build("test_vit", weights=path)(images), whole(images))
    with pytest.raises(CheckpointError, match="does not hold the weights of timm's 'test_resnet'"):
        build("test_resnet", weights=path)


def test_weights_of_another_image_size_are_fitted(tmp_path: Path) -> None:
    small = build("test_vit")
    path = tower_file(tmp_path, small.model.state_dict())
    large = build("test_vit", image_size=96, weights=path)
    assert large(torch.randn(1, 3, 96, 96)).shape[1] == 37
    torch.testing.assert_close(large.model.norm.weight, small.model.norm.weight)


def test_without_network_or_cache_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("lavislite.models.vision.timm.hub_trouble", lambda: "no connection")
    monkeypatch.setattr("timm.create_model", None)
    with pytest.raises(UserError, match=r"'test_vit' cannot be had: no connection\."):
        build("test_vit", weights=None)
    (tmp_path / "models--timm--test_vit.r160_in1k/snapshots/abc/model.safetensors").mkdir(
        parents=True
    )
    with pytest.raises(ConfigError, match="'NoneType' object is not callable"):
        build("test_vit", weights=None)  # what is in the cache is tried


def test_what_timm_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="'vit_base_patch16_224' has no weights 'augreg_in2k'"):
        build("vit_base_patch16_224.augreg_in2k")
    with pytest.raises(ConfigError, match="Similar: resnet10t, resnet14t"):
        build("resnet1*t")
    with pytest.raises(ConfigError, match="it returned list"):
        build("crossvit_9_240", image_size=240)
    with pytest.raises(ConfigError, match="Did you mean 'test_vit"):
        build("test_vitt")
    with pytest.raises(ConfigError, match="no list of blocks"):
        build("test_resnet", drop_blocks=1)
    with pytest.raises(ConfigError, match="cannot drop 9"):
        build("test_vit", drop_blocks=9)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        build("test_resnet", options={"colour": 1})


def test_eva_preset_gives_the_originals_features(tmp_path: Path) -> None:
    state = load_file(REFERENCE / "eva_state.safetensors")
    prefix = "visual_encoder."
    tower = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    reference = load_file(REFERENCE / "eva_frozen_tensors.safetensors")
    backbone = eva_clip_g(weights=tower_file(tmp_path, tower), image_size=56, **TINY_EVA).eval()
    with torch.no_grad():
        features = backbone(reference["image"])
    torch.testing.assert_close(features, reference["vit_output"], atol=2e-5, rtol=1e-4)


def test_presets_fit_positions_to_the_image_size_as_lavis_does(tmp_path: Path) -> None:
    for preset, sizes, corners in ((eva_clip_g, TINY_EVA, False), (clip_l, TINY_CLIP, True)):
        small = preset(weights="none", image_size=56, **sizes)
        path = tower_file(tmp_path, small.model.state_dict())
        large = preset(weights=path, image_size=84, **sizes)
        expected = interpolate_positions(small.model.pos_embed, 37, align_corners=corners)
        torch.testing.assert_close(large.model.pos_embed, expected)


def test_clip_preset_reads_clips_own_names_and_activation(tmp_path: Path) -> None:
    tower = clip_l(weights="none", image_size=56, **TINY_CLIP)
    names = timm_to_clip(tower.model.state_dict())
    assert "transformer.resblocks.0.attn.in_proj_weight" in names
    assert names["positional_embedding"].shape == (17, 32)
    assert {k: v.shape for k, v in clip_to_timm(names).items()} == {
        k: v.shape for k, v in tower.model.state_dict().items()
    }
    again = clip_l(weights=tower_file(tmp_path, names), image_size=56, **TINY_CLIP)
    images = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(again.eval()(images), tower.eval()(images))
    assert type(tower.model.blocks[0].mlp.act).__name__ == "QuickGELU"
    assert len(tower.blocks) == 2


def test_another_encoders_weights_are_refused(tmp_path: Path) -> None:
    eva = eva_clip_g(weights="none", image_size=56, **TINY_EVA)
    with pytest.raises(CheckpointError, match="is not the image encoder asked for"):
        clip_l(weights=tower_file(tmp_path, eva.model.state_dict()), image_size=56, **TINY_CLIP)


@pytest.mark.parametrize(
    ("name", "blocks", "width", "parameters"),
    [("eva_clip_g", 39, 1408, 985_894_528), ("clip_L", 23, 1024, 290_581_504)],
)
def test_presets_have_the_published_size(
    name: str, blocks: int, width: int, parameters: int
) -> None:
    with torch.device("meta"):
        backbone = build_vision(VisionConfig(name=name, weights="none"))
    assert (len(backbone.blocks), backbone.num_features) == (blocks, width)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
