"""Parameter groups, frozen parts, and checkpoints that fit or say why not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lavislite.common.errors import CheckpointError
from lavislite.models.base import BaseModel

from .reference import FOLDER, reference_model

EXPECTED = json.loads((FOLDER / "param_groups.json").read_text())


def groups(name: str, *, frozen: bool, layer_decay: float) -> list[list]:
    model = reference_model(frozen=frozen)
    found = model.get_optimizer_params(0.05, layer_decay)
    for group in found:
        names = {id(p): n for n, p in model.named_parameters()}
        assert [names[id(p)] for p in group["params"]] == group["names"]
    return [[g["weight_decay"], g["lr_scale"], g["names"]] for g in found]


def test_groups_of_the_original_with_a_frozen_tower() -> None:
    name = "stage1_eva_clip_g_frozen"
    assert groups(name, frozen=True, layer_decay=1.0) == EXPECTED[name]
    assert groups(name, frozen=True, layer_decay=1.0) == EXPECTED["stage1_clip_L_frozen"]


def test_groups_of_the_original_with_layer_decay() -> None:
    name = "stage1_eva_clip_g_unfrozen_layer_decay_0.9"
    found = groups(name, frozen=False, layer_decay=0.9)
    by_scale = sorted((sorted(g[2]), g[0], round(g[1], 9)) for g in found)
    assert by_scale == sorted((sorted(g[2]), g[0], round(g[1], 9)) for g in EXPECTED[name])


def test_blocks_of_clip_decay_as_in_the_original() -> None:
    """Only the blocks: LAVIS gives CLIP's patch projection the learning rate of the last block, and
    counts its class token as a vector; here both are treated as EVA's."""
    from timm.models.vision_transformer import VisionTransformer

    from lavislite.models.base import backbone_layer_ids
    from lavislite.models.vision.names import clip_to_timm

    tower = VisionTransformer(
        img_size=56, patch_size=14, embed_dim=64, depth=3, num_heads=4, pre_norm=True, num_classes=0
    )
    ids, depth = backbone_layer_ids(tower, "")
    compared = 0
    for _, scale, names in EXPECTED["stage1_clip_L_unfrozen_layer_decay_0.9"]:
        vision = {n.removeprefix("visual_encoder."): n for n in names if "visual_encoder" in n}
        for name in clip_to_timm({n: torch.zeros(1) for n in vision if "resblocks" in n}):
            assert 0.9 ** (depth + 1 - ids[name]) == pytest.approx(scale), name
            compared += 1
    assert compared == 36
    assert ids["patch_embed.proj.weight"] == ids["cls_token"] == ids["norm_pre.weight"] == 0


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2)


class Small(BaseModel):
    def __init__(self, *, frozen: bool = True) -> None:
        super().__init__()
        self.tower = nn.BatchNorm1d(2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 3)
        self.frozen = frozen
        self.tower.requires_grad_(not frozen)

    def frozen_modules(self) -> tuple[nn.Module, ...]:
        return (self.tower,) if self.frozen else ()

    def identity(self) -> dict[str, str]:
        return {"tower": "bn@1"}


def test_what_comes_before_the_first_block_is_the_lowest_layer() -> None:
    from lavislite.models.base import backbone_layer_ids

    ids, depth = backbone_layer_ids(Tower(), "t.")
    assert depth == 2
    assert ids["t.stem.weight"] == 0
    assert (ids["t.blocks.0.bias"], ids["t.blocks.1.bias"]) == (1, 2)
    assert ids["t.norm.weight"] == 2
    assert backbone_layer_ids(nn.Linear(2, 2), "t.") == ({}, 0)


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = Small().train()
    assert model.training
    assert model.norm.training
    assert not model.tower.training
    assert Small(frozen=False).train().tower.training


def test_counts_and_device() -> None:
    assert Small().parameter_counts == (4 + 9, 4)
    assert Small().device == torch.device("cpu")


def test_a_checkpoint_holds_what_trains_and_its_buffers() -> None:
    names = set(Small().trainable_state_dict())
    assert names == {
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "head.weight",
        "head.bias",
    }


def test_load_trainable_restores_all_of_it() -> None:
    first, second = Small(), Small()
    first.norm.running_mean.fill_(3.0)
    second.load_trainable({k: v.detach().clone() for k, v in first.trainable_state_dict().items()})
    for name, tensor in first.trainable_state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    state = Small().trainable_state_dict()
    without = {k: v for k, v in state.items() if k != "head.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 'head\.bias'"):
        Small().load_trainable(without)
    with pytest.raises(CheckpointError, match=r"unknown 'heat.bias'.*Did you mean 'head.bias'"):
        Small().load_trainable({**state, "heat.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'head.bias' has shape \[4\].*needs \[3\]"):
        Small().load_trainable({**state, "head.bias": torch.zeros(4)})


def test_a_refused_state_changes_nothing() -> None:
    model, state = Small(), Small().trainable_state_dict()
    before = model.head.weight.clone()
    with pytest.raises(CheckpointError):
        model.load_trainable({**state, "head.bias": torch.zeros(4)})
    assert torch.equal(model.head.weight, before)


def test_other_frozen_parts_are_refused() -> None:
    Small().check_identity({"tower": "bn@1", "language": "unknown to this model"})
    with pytest.raises(CheckpointError, match=r"tower 'bn@2', this model has tower 'bn@1'"):
        Small().check_identity({"tower": "bn@2"})


def test_load_pretrained_may_leave_out_frozen_parts(tmp_path) -> None:
    first, second = Small(), Small()
    state = {k: v.detach().clone() for k, v in first.trainable_state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    second.load_pretrained(tmp_path / "model.safetensors")
    assert torch.equal(second.head.weight, first.head.weight)
    del state["head.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        second.load_checkpoint(tmp_path / "model.safetensors")
