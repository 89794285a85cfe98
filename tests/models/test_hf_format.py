"""Names and configurations of Hugging Face's BLIP-2, both ways."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from lavislite.common.errors import CheckpointError, UserError
from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.hf_config import check_language, text_config, vision_config
from lavislite.models.blip2.hf_format import from_hf, to_hf
from lavislite.models.blip2.lavis_names import inner_prefix
from lavislite.models.blip2.merged import merged_state
from lavislite.models.vision.tiny import TinyViT

from .exporting import CLASSES, STAGE2, build, expected_names
from .language.tiny import tiny_config

EVA_TINY = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 4}


def as_lavis(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's names without what our wrapper puts before them."""
    inner = "visual_encoder." + inner_prefix(state)
    return {
        "visual_encoder." + n.removeprefix(inner) if n.startswith(inner) else n: t
        for n, t in state.items()
    }


@pytest.mark.parametrize("kind", ["stage1", *STAGE2])
def test_there_and_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    state = distinct_tensors(build(kind, tmp_path))
    theirs, left_out = to_hf(state, inner_prefix(state))
    back = from_hf(theirs)
    assert not back.left_out
    ours = {**back.state, **left_out}
    expected = as_lavis(state)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    head = {name for name in left_out if name.startswith("Qformer.cls.predictions.")}
    assert set(left_out) == (head | {"temp"} if kind == "stage1" else set())


@pytest.mark.parametrize("kind", ["stage1", *STAGE2])
def test_exactly_the_tensors_that_are_wanted(kind: str, tmp_path: Path) -> None:
    model = build(kind, tmp_path)
    state = distinct_tensors(model)
    lm = None if kind == "stage1" else model.language.model
    assert set(to_hf(state, inner_prefix(state)).state) == expected_names(kind, lm)


def full_size(text: Any, **changes: Any) -> nn.Module:
    """A published model of Hugging Face, without numbers."""
    config = transformers.Blip2Config(text_config=text, **changes)
    cls = getattr(transformers, CLASSES["stage1" if text is None else "opt"])
    with torch.device("meta"):
        return cls(config)


OPT_27 = {
    "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240,
    "num_attention_heads": 32, "word_embed_proj_dim": 2560, "vocab_size": 50272,
}  # fmt: skip
T5_XL = {
    "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
    "num_heads": 32, "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tensors"),
    [
        (None, 809),
        (OPT_27, 1248),
        (T5_XL, 1291),
    ],
    ids=["itm-vit-g", "opt-2.7b", "flan-t5-xl"],
)
def test_published_sizes_survive(text: Any, tensors: int) -> None:
    qformer = {"vocab_size": 30_523, "use_qformer_text_input": text is None}
    model = full_size(text, qformer_config=qformer)
    theirs = model.state_dict()
    assert len(theirs) == tensors
    ours = from_hf(theirs).state
    assert ours["visual_encoder.blocks.38.attn.v_bias"].shape == (1408,)
    back = to_hf(ours).state
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in theirs.items()}


def test_the_bias_of_the_keys_is_dropped_and_does_not_matter(tmp_path: Path) -> None:
    state = distinct_tensors(build("opt", tmp_path))
    theirs = to_hf(state, inner_prefix(state)).state
    name = "vision_model.encoder.layers.1.self_attn.qkv.bias"
    assert not theirs[name][64:128].any()
    noisy = {**theirs, name: theirs[name] + 0}
    noisy[name][64:128] = torch.randn(64) * 9
    before, after = from_hf(theirs).state, from_hf(noisy).state
    assert all(torch.equal(before[n], after[n]) for n in before)
    config = vision_config(timm_eva())
    layer = transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**config))
    attention = layer.encoder.layers[0].self_attn.eval()
    x = torch.randn(1, 17, 64)
    with torch.no_grad():
        quiet = attention(x)[0]
        attention.qkv.bias[64:128] = torch.randn(64) * 9
        torch.testing.assert_close(attention(x)[0], quiet, atol=1e-5, rtol=1e-5)


def test_a_plain_vit_keeps_its_fused_bias() -> None:
    tower = plain_vit()
    state = {"visual_encoder." + n: torch.randn_like(t) for n, t in tower.state_dict().items()}
    back = from_hf(to_hf(state).state, fused_bias=True).state
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("tower", ["eva", "vit"])
def test_the_vision_tower_computes_the_same(tower: str) -> None:
    ours = (timm_eva() if tower == "eva" else plain_vit()).eval()
    config = vision_config(ours)
    theirs = transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**config)).eval()
    norm = nn.LayerNorm(64, eps=config["layer_norm_eps"])
    state = {"visual_encoder." + n: t for n, t in ours.state_dict().items()}
    state |= {f"ln_vision.{n}": t for n, t in norm.state_dict().items()}
    named = {n.removeprefix("vision_model."): t for n, t in to_hf(state).state.items()}
    theirs.load_state_dict(named)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = norm(ours.forward_features(pixels))
        found = theirs(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def timm_eva(**changes: Any) -> Any:
    tower = timm.create_model(
        "eva_giant_patch14_clip_224", num_classes=0, **{**EVA_TINY, **changes}
    )
    tower.prune_intermediate_layers([1], prune_norm=True, prune_head=True)
    return tower


def plain_vit(name: str = "vit_base_patch16_224", **changes: Any) -> Any:
    tower = timm.create_model(name, num_classes=0, **{**EVA_TINY, **changes})
    tower.prune_intermediate_layers([1], prune_norm=True, prune_head=True)
    return tower


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'qformer.pooler.weight' is no tensor"):
        from_hf({"qformer.pooler.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'visual_encoder.norm_pre.weight' has no place"):
        to_hf({"visual_encoder.norm_pre.weight": torch.zeros(1)})


def test_old_captioners_carry_a_text_side_that_is_left_out() -> None:
    state = {
        "qformer.encoder.layer.0.intermediate.dense.bias": torch.zeros(1),
        "embeddings.position_ids": torch.zeros(1),
        "itm_head.bias": torch.zeros(2),
    }
    assert from_hf(state) == ({}, state)


# ---- what cannot be expressed


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("vit_large_patch14_clip_quickgelu_224", {}, "norm before the first block"),
        ("vit_base_patch16_siglip_224", {}, "no class token"),
        ("vit_small_patch16_dinov3", {"num_heads": 4}, "register tokens"),
        ("vit_small_patch14_dinov2", {"init_values": 1e-5}, "LayerScale"),
    ],
)
def test_towers_without_a_place_are_refused(name: str, changes: Any, why: str) -> None:
    with pytest.raises(UserError, match=rf"{why}.*--to lavislite"):
        vision_config(plain_vit(name, **changes))


def test_a_final_norm_and_the_playground_tower_are_refused() -> None:
    whole = timm.create_model("vit_base_patch16_224", num_classes=0, **EVA_TINY)
    with pytest.raises(UserError, match=r"final norm of its own.*final_norm: false"):
        vision_config(whole)
    with pytest.raises(UserError, match=r"TinyViT: it is no plain vision transformer.*Exportable"):
        vision_config(TinyViT(weights="none"))


def language(family: str, **changes: Any) -> Any:
    config = tiny_config(family, **changes)
    auto: Any = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    return auto.from_config(config)


def test_language_models_without_a_place_are_refused() -> None:
    with pytest.raises(UserError, match=r"BartForCond.*of a 'bart' it always builds a decoder"):
        check_language(language("bart"), "seq2seq")
    with pytest.raises(UserError, match=r"embeddings are 16 wide, its layers 32 .*opt-350m"):
        check_language(language("opt_projected"), "causal")
    quantised = language("opt")
    quantised.is_quantized = True
    with pytest.raises(UserError, match=r"quantised.*without model.language.quantization"):
        text_config(quantised, "causal")
    offloaded = language("opt").to("meta")
    with pytest.raises(UserError, match="device_map"):
        text_config(offloaded, "causal")


def test_the_live_configuration_is_not_touched() -> None:
    lm = language("opt").eval()
    before = copy.deepcopy(lm.config.to_dict()), lm.config._attn_implementation
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        logits = lm(ids).logits
        text = text_config(lm, "causal")
        text["vocab_size"] = 7
        transformers.Blip2Config(text_config=text)
        assert (lm.config.to_dict(), lm.config._attn_implementation) == before
        assert torch.equal(lm(ids).logits, logits)


def test_t5_keeps_what_its_class_forgets() -> None:
    text = text_config(language("t5", dense_act_fn="gelu"), "seq2seq")
    assert text["dense_act_fn"] == "gelu"
    assert text["tie_word_embeddings"] is False
    assert text["architectures"] == ["T5ForConditionalGeneration"]


# ---- LoRA


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as peft makes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.active_adapters = ["default"]

    def get_delta_weight(self, adapter: str) -> Tensor:
        return self.lora_B[adapter].weight @ self.lora_A[adapter].weight * 0.5


def test_adapters_are_merged_and_the_live_model_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = nn.Sequential(model[0], Adapted(model[1]))  # type: ignore[arg-type]
    names = set(adapted.state_dict())
    merged = merged_state(adapted)
    assert merged.keys() == plain.keys()
    delta = adapted[1].get_delta_weight("default")
    torch.testing.assert_close(merged["1.weight"], plain["1.weight"] + delta)
    for name in ("0.weight", "0.bias", "1.bias"):
        assert torch.equal(merged[name], plain[name])
    assert set(adapted.state_dict()) == names
