"""Frozen parts in 8 bits: near the whole ones, and interchangeable with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.sharded import is_quantized
from lavislite.models.blip2.native import save_native
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig
from lavislite.models.language.base import LanguageConfig, LoraOptions
from lavislite.models.quantize import Through, quantize
from lavislite.models.vision.base import VisionConfig
from lavislite.runners.strategy import make_strategy

from .language.tiny import save_tiny
from .reference import tiny_config

pytest.importorskip("torchao")
CPU = torch.device("cpu")


def vision(kind: str | None = None, **changes: Any) -> VisionConfig:
    settings = {"name": "tiny", "image_size": 16, "weights": "none", "options": {"width": 64}}
    return VisionConfig(**{**settings, "quantization": kind, **changes})


def stage1(kind: str | None = None, **changes: Any) -> Blip2Qformer:
    torch.manual_seed(3)
    return Blip2Qformer.from_config(tiny_config(vision=vision(kind), **changes))


def stage2(folder: Path, family: str = "opt", kind: str | None = None, **language: Any) -> Blip2LLM:
    path = folder / family
    if not path.exists():
        save_tiny(path, family)
    torch.manual_seed(3)
    cfg = Blip2LLMConfig(
        vision=vision(),
        qformer=tiny_config().qformer,
        num_query_tokens=8,
        max_txt_len=16,
        language=LanguageConfig(name=str(path), quantization=kind, **language),
    )
    return Blip2LLM.from_config(cfg)


def samples() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(3, 3, 16, 16, generator=generator)
    return {"image": pictures, "text_input": ["a red cat", "two dogs", "a table"]}


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def quantized_names(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if is_quantized(p)]


def test_a_tower_in_int8_sees_nearly_the_same() -> None:
    whole, small = stage1().eval(), stage1("int8").eval()
    names = quantized_names(small)
    assert len(names) == 8  # four in each block
    assert all("visual_encoder.blocks" in name for name in names)
    tokens, theirs = (m.tower_features(samples()["image"]) for m in (small, whole))
    assert 0 < relative(tokens, theirs) < 0.02
    assert tokens.dtype == theirs.dtype


def test_checkpoints_pass_from_whole_towers_to_quantised_ones_and_back() -> None:
    whole, small = stage1(), stage1("int8")
    assert small.identity() == whole.identity()
    for one, other in ((whole, small), (small, whole)):
        with torch.no_grad():
            one.query_tokens.add_(1)
        assert not any("visual_encoder" in name for name in one.trainable_state_dict())
        other.check_identity(one.identity())
        other.load_trainable(one.trainable_state_dict())
        assert torch.equal(one.query_tokens, other.query_tokens)


def test_another_tower_is_still_told_from_this_one() -> None:
    torch.manual_seed(4)
    other = Blip2Qformer.from_config(tiny_config(vision=vision("int8")))
    with pytest.raises(CheckpointError, match="vision 'tiny@"):
        other.check_identity(stage1("int8").identity())


def test_a_checkpoint_with_a_tower_is_read_before_and_refused_afterwards(tmp_path: Path) -> None:
    whole = stage1()
    with torch.no_grad():
        whole.visual_encoder.norm.weight.mul_(3)
        whole.visual_encoder.blocks[0].fc1.weight.mul_(3)
    path = tmp_path / "all.pth"
    torch.save(whole.state_dict(), path)
    small = stage1("int8", pretrained=str(path))
    assert small.identity()["vision"] == whole.identity()["vision"]
    picture = samples()["image"]
    assert relative(small.tower_features(picture), whole.tower_features(picture)) < 0.02
    with pytest.raises(CheckpointError, match=r"quantised.*model\.pretrained"):
        small.load_pretrained(str(path))


@pytest.mark.parametrize("family", ["opt", "t5", "llama"])
def test_gradients_reach_the_bridge_through_a_language_model_in_int8(
    family: str, tmp_path: Path
) -> None:
    found = []
    for kind in (None, "int8"):
        model = stage2(tmp_path, family, kind).train()
        loss = model(samples())["loss"]
        loss.backward()
        found.append((loss.detach(), model.llm_proj.weight.grad, model.identity()))
    (theirs, their_gradient, identity), (ours, gradient, own_identity) = found
    assert ours.item() == pytest.approx(theirs.item(), rel=0.02)
    assert relative(gradient, their_gradient) < 0.3  # of the right direction and size
    assert own_identity == identity


def test_the_gradient_is_that_of_the_stored_weights() -> None:
    layer = nn.Linear(32, 48).requires_grad_(False)
    tower = nn.Sequential(layer)
    quantize(tower, "int8", "key", fingerprint="f", gradients=True)
    x = torch.randn(5, 32, requires_grad=True)
    weights = torch.randn(5, 48)
    (tower(x) * weights).sum().backward()
    assert isinstance(layer, Through)
    assert torch.allclose(x.grad, weights @ layer.weight.dequantize(), atol=1e-5)


def test_adapters_train_on_quantised_layers_and_heads_stay_whole(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = stage2(tmp_path, kind="int8", lora=LoraOptions(rank=2)).train()
    names = quantized_names(model)
    assert names
    assert not any("lora_" in name or "lm_head" in name or "embed" in name for name in names)
    model(samples())["loss"].backward()
    adapters = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)
    assert model.eval().generate({"image": samples()["image"]}, max_new_tokens=2)


def test_quantised_models_move_and_are_not_written(tmp_path: Path) -> None:
    model = stage1("int8")
    assert len(quantized_names(model.to("cpu"))) == 8
    with pytest.raises(UserError, match=r"quantised.*model\.vision\.quantization=null"):
        save_native(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fsdp_refuses_quantised_weights() -> None:
    with pytest.raises(ConfigError, match="fsdp cannot divide quantised weights. Use ddp"):
        make_strategy(stage1("int8"), CPU, name="fsdp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "int4"}, "vision.quantization: 'int4' is unknown. Did you mean 'int8'"),
        ({"kind": "int8", "freeze": False}, "int8 is for a frozen backbone"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vision(**changes).check()


def test_a_tower_without_linear_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = nn.Sequential(nn.Conv2d(3, 16, 4), nn.Linear(16, 10)).requires_grad_(False)
    with pytest.raises(ConfigError, match="no linear layers whose sizes are multiples of 16"):
        quantize(tower, "int8", "model.vision.quantization", fingerprint="")


def test_fp8_names_the_gpu_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"vision\.quantization: fp8 needs a GPU .*int8"):
        stage1("fp8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(UserError, match=r"NVIDIA A100 has 8\.0\. Use int8"):
        stage1("fp8")


def test_torchao_is_asked_for_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavislite.models.language.extras.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"'torchao', which is not installed.*\[quantization\]"):
        stage1("int8")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_on_a_gpu(kind: str, tmp_path: Path) -> None:
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    whole, small = (stage2(tmp_path, "llama", k).cuda().train() for k in (None, kind))
    batch = {**samples(), "image": samples()["image"].cuda()}
    ours, theirs = small(batch)["loss"], whole(batch)["loss"]
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=0.1)
    assert small.llm_proj.weight.grad.isfinite().all()
    towers = [Blip2Qformer.from_config(tiny_config(vision=vision(k))).cuda() for k in (None, kind)]
    towers[1].query_tokens.data.copy_(towers[0].query_tokens)
    assert towers[1].tower_features(batch["image"]).isfinite().all()
