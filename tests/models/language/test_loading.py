"""Where language models come from, and what is said when one cannot be had or cannot work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lavislite.common import catalog
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.generation import GenerationOptions
from lavislite.models.language import extras
from lavislite.models.language.base import (
    LanguageConfig,
    LoraOptions,
    build_language,
    language_fingerprint,
    language_kind,
)

from .tiny import IDS, build_tiny, random_prefix, save_tiny, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny_opt", "opt")


def build(folder: Path | str, **settings: Any) -> Any:
    return build_language(LanguageConfig(name=str(folder), **settings))


# ---- what works


def test_weights_of_the_folder_are_loaded_and_frozen(folder: Path) -> None:
    language = build(folder)
    stored = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(stored[k], v) for k, v in language.model.state_dict().items())
    assert not any(p.requires_grad for p in language.parameters())
    assert language.kind == "causal"
    assert language.context_length == 96
    assert not language.train().model.training
    assert language.frozen


def test_random_weights_follow_the_seed_and_need_none_stored(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.manual_seed(3)
    first = build(folder, weights="none")
    torch.manual_seed(3)
    second = build(folder, weights="none")
    third = build(folder, weights="none")
    assert language_fingerprint(first) == language_fingerprint(second)
    assert language_fingerprint(first) != language_fingerprint(third)


def test_weights_may_be_a_file_or_another_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (folder / "model.safetensors").rename(other / "model.safetensors")
    wanted = build(folder, weights=str(other / "model.safetensors"))
    shutil.copy(folder / "config.json", other / "config.json")
    assert language_fingerprint(build(folder, weights=str(other))) == language_fingerprint(wanted)


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    language = build_tiny(tmp_path, "t5")
    model = language.model
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert not model.config.scale_decoder_outputs


def test_a_prefix_forces_an_adapter(folder: Path) -> None:
    assert build(f"causal:{folder}").kind == "causal"
    with pytest.raises(ConfigError, match=r"no seq2seq language model.*causal:"):
        build(f"seq2seq:{folder}")
    with pytest.raises(ConfigError, match="'causal' needs a model: 'causal:<id>'"):
        build("causal")


def test_a_registered_name_is_called_with_the_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        catalog.language_models._objects, "my_lm", lambda cfg: build(folder, freeze=cfg.freeze)
    )
    assert build("my_lm", freeze=False).frozen is False
    monkeypatch.setitem(catalog.language_models._objects, "my_lm", lambda _: 3)
    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module .* it is a int"):
        build("my_lm")


def test_options_override_the_configuration(tmp_path: Path) -> None:
    save_tiny(tmp_path, "t5")
    language = build(tmp_path, options={"dense_act_fn": "gelu"})
    assert language.model.config.dense_act_fn == "gelu"
    with pytest.raises(ConfigError, match="has no 'dense_act'. Did you mean 'dense_act_fn'"):
        build(tmp_path, options={"dense_act": "gelu"})


def test_bf16_is_loaded_as_such_and_computes_so_under_autocast(folder: Path) -> None:
    language = build(folder, precision="bf16")
    assert {p.dtype for p in language.parameters()} == {torch.bfloat16}
    prefix = random_prefix(language, 1).requires_grad_()
    plain = language.nll(prefix, ["a photo of"], ["a cat"]).total
    with torch.autocast("cpu", torch.float16):
        auto = language.nll(prefix, ["a photo of"], ["a cat"]).total
    assert plain.dtype == torch.float32
    assert torch.equal(plain, auto)


def test_on_the_meta_device_nothing_is_computed(folder: Path) -> None:
    with torch.device("meta"):
        language = build(folder, weights="none")
    assert all(p.is_meta for p in language.parameters())


def test_a_model_that_trains(folder: Path) -> None:
    language = build(folder, freeze=False)
    language.train()
    assert language.model.training
    language.nll(random_prefix(language, 1), ["a"], ["cat"]).total.sum().backward()
    assert all(p.grad is not None for p in language.model.model.decoder.layers.parameters())


def test_the_build_changes_no_random_numbers_and_no_configuration(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    language = build(folder)
    assert torch.equal(torch.rand(1), expected)
    stored = json.loads((folder / "config.json").read_text())
    assert language.model.config.vocab_size == stored["vocab_size"]
    assert language.model.config._attn_implementation == "sdpa"


# ---- extras


def test_lora_trains_and_only_lora(folder: Path) -> None:
    pytest.importorskip("peft")
    plain = build(folder)
    language = build(folder, precision="bf16", lora=LoraOptions(rank=4))
    language.train()
    trained = {name for name, p in language.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not language.frozen
    language.nll(random_prefix(language, 1), ["a"], ["cat"]).total.sum().backward()
    grads = {name for name, p in language.named_parameters() if p.grad is not None}
    assert grads == trained
    assert {p.dtype for name, p in language.named_parameters() if name in trained} == {
        torch.float32
    }
    modes = {m.training for name, m in language.model.named_modules() if "lora_" in name}
    assert modes == {True}
    assert not language.model.training
    assert language_fingerprint(language) == language_fingerprint(plain)
    assert language.generate(random_prefix(language, 1), ["a"], GenerationOptions(num_beams=2))


def test_lora_names_layers_that_exist(folder: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=r"target_modules.*such as fc1, fc2, k_proj"):
        build(folder, lora=LoraOptions(target_modules=["nothing"]))


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        ({"quantization": "8bit"}, "bitsandbytes", "bnb"),
        ({"quantization": "4bit"}, "bitsandbytes", "bnb"),
        ({"lora": LoraOptions()}, "peft", "lora"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    package: str,
    extra: str,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(UserError, match=rf"'{package}'.*lavislite\[{extra}\]"):
        build(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf61"}, "precision: 'bf61' is unknown. Did you mean 'bf16'"),
        ({"quantization": "8bits"}, "quantization: '8bits' is unknown. Did you mean '8bit'"),
        ({"quantization": "8bit", "weights": "none"}, "8bit needs weights"),
        ({"quantization": "8bit", "freeze": False}, "quantization: a model so loaded cannot train"),
        ({"lora": LoraOptions(rank=0)}, "lora.rank: expected 1 or more"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanguageConfig(**settings).check()


# ---- what is missing


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'seq2sek' is neither.* Did you mean 'seq2seq'") as caught:
        build("seq2sek")
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert "Registered: causal" in str(caught.value)
    (tmp_path / "tiny_opt").mkdir()
    with pytest.raises(ConfigError, match="name: is empty"):
        build("")
    with pytest.raises(UserError, match="there is no folder .*Did you mean 'tiny_opt'"):
        build(tmp_path / "tiny_op")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights .*weights: none"),
        ("tokenizer.json", "holds no tokenizer .*save_pretrained"),
    ],
)
def test_an_incomplete_folder(folder: Path, file: str, message: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UserError, match=message):
        build(folder)


def test_incomplete_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.decoder.layers.1.fc1.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, '.*layers\.1\.fc1\.weight'"):
        build(folder)


def test_weights_of_another_width(folder: Path) -> None:
    save_tiny(folder / "wide", "opt", hidden_size=64, word_embed_proj_dim=64)
    shutil.copy(folder / "wide" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"has shape \[\d+, 64\], .* needs \[\d+, 32\]"):
        build(folder)


def test_a_configuration_that_cannot_be_built(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be built .*nonsense"):
        build(folder, weights="none", options={"activation_function": "nonsense"})


@pytest.mark.parametrize("content", ["{}", "{ no json"])
def test_a_damaged_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="The tokenizer of .* cannot be loaded"):
        build(folder)


def test_the_kind_is_known_without_building(folder: Path, tmp_path: Path) -> None:
    assert language_kind(LanguageConfig(name=str(folder))) == "causal"
    assert language_kind(LanguageConfig(name=f"causal:{folder}")) == "causal"
    t5 = save_tiny(tmp_path / "t5", "t5")
    assert language_kind(LanguageConfig(name=str(t5))) == "seq2seq"
    assert language_kind(LanguageConfig(name="playground_opt")) is None
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        language_kind(LanguageConfig(name=str(folder)))
    assert language_kind(LanguageConfig(name=str(folder), weights="none")) == "causal"


def test_a_model_that_trains_is_kept_in_full_precision(folder: Path) -> None:
    language = build(folder, freeze=False, precision="bf16")
    assert {p.dtype for p in language.parameters()} == {torch.float32}


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        build(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(5)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="ids up to 304, its model only 300 embeddings"):
        build(folder)


# ---- tokenizers without special tokens


def test_without_a_pad_token_the_end_token_pads(tmp_path: Path) -> None:
    with_pad = build(save_tiny(tmp_path / "a", "opt"))
    without = build(save_tiny(tmp_path / "b", "opt", tiny_tokenizer("<s> $A", pad_token=None)))
    prompts, targets = ["a", "a photo of a red cat"], ["red dogs are running", "two"]
    prefix = random_prefix(without, 2)
    torch.testing.assert_close(
        without.nll(prefix, prompts, targets).total, with_pad.nll(prefix, prompts, targets).total
    )
    options = GenerationOptions(num_beams=2, max_new_tokens=5)
    assert without.generate(prefix, prompts, options) == with_pad.generate(prefix, prompts, options)


def test_without_an_end_token_one_must_be_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "gpt2", tiny_tokenizer(eos_token=None))
    with pytest.raises(ConfigError, match=r"no end token.*model\.language\.end"):
        build(folder)
    language = build(folder, end="\n")
    assert language.codec.end == language.codec.plain("\n")[0]
    with pytest.raises(ConfigError, match="end: 'running along' must be one token .* it is"):
        build(folder, end="running along")


# ---- families that cannot work


def _save(folder: Path, config: Any, auto: Any) -> Path:
    auto.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _ctrl(folder: Path) -> Path:
    config = transformers.CTRLConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, dff=32, **IDS)
    return _save(folder, config, transformers.AutoModelForCausalLM)


def _openai_gpt(folder: Path) -> Path:
    config = transformers.OpenAIGPTConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, **IDS)
    return _save(folder, config, transformers.AutoModelForCausalLM)


def _gemma3n(folder: Path) -> Path:
    config = transformers.Gemma3nTextConfig(
        vocab_size=300, vocab_size_per_layer_input=300, hidden_size=32, intermediate_size=48,
        hidden_size_per_layer_input=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_kv_shared_layers=0, laurel_rank=4,
        layer_types=["full_attention"] * 2, activation_sparsity_pattern=None, **IDS,
    )  # fmt: skip
    return _save(folder, config, transformers.AutoModelForCausalLM)


def _fsmt(folder: Path) -> Path:
    config = transformers.FSMTConfig(
        src_vocab_size=300, tgt_vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, langs=["en", "de"], decoder_start_token_id=2, **IDS,
    )  # fmt: skip
    return _save(folder, config, transformers.AutoModelForSeq2SeqLM)


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (_ctrl, "prepare_inputs_for_generation takes no inputs_embeds"),
        (_openai_gpt, "prepare_inputs_for_generation takes no inputs_embeds"),
        (_gemma3n, "embeddings for every layer by token id"),
        (_fsmt, "cannot read image tokens: "),
    ],
)
def test_a_family_that_cannot_work_is_refused_with_the_reason(
    tmp_path: Path, save: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(save(tmp_path), weights="none")


def test_a_model_that_reads_embeddings_differently_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transformers.OPTForCausalLM.forward

    def scaled(self: nn.Module, inputs_embeds: Any = None, **inputs: Any) -> Any:
        if inputs_embeds is not None:
            inputs["inputs_embeds"] = 2 * inputs_embeds
        return whole(self, **inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(transformers.OPTForCausalLM, "forward", scaled)
    with pytest.raises(ConfigError, match="reads embeddings differently from token ids"):
        build(folder)
