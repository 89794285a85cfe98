"""A folder that we write is, to transformers, the model that we have; and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lavislite.common.errors import CheckpointError, UserError
from lavislite.convert import from_hf
from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.hf_check import greatest_difference
from lavislite.models.blip2.hf_export import dress_like, export_hf
from lavislite.models.blip2.hf_format import to_hf
from lavislite.models.blip2.hf_import import hf_config, is_hf_folder, load_hf
from lavislite.models.blip2.hf_tokens import rare_token, with_image_token
from lavislite.models.language.text import TextCodec
from lavislite.processors.image import BlipImageEval

from .exporting import CLASSES, STAGE2, build, expected_names, images
from .language.tiny import tiny_tokenizer
from .reference_stage2 import DATA

KINDS = ("stage1", *STAGE2)
PROMPTS = ("", "a photo of")


class Exported:
    """A model of ours and the folder it was written to."""

    def __init__(self, kind: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.kind, self.folder = kind, folder / "hf"
        # Where both norms have the same epsilon, nothing but the order of additions differs.
        self.model: Any = build(kind, folder, ln_vision_eps=1e-6)
        export_hf(self.model, self.folder)
        self.config = json.loads((self.folder / "config.json").read_text())

    def theirs(self) -> Any:
        cls = getattr(transformers, CLASSES[self.kind])
        return cls.from_pretrained(self.folder).eval()

    def processor(self) -> Any:
        return transformers.AutoProcessor.from_pretrained(self.folder, backend="pil")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return {kind: Exported(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_identical(kind: str, exported: dict[str, Exported]) -> None:
    case = exported[kind]
    assert greatest_difference(case.model, case.folder) < 1e-5
    bias = case.model.ln_vision.bias
    kept = bias.detach().clone()
    with torch.no_grad():  # the check would notice
        bias.add_(1)
        assert greatest_difference(case.model, case.folder) > 1e-3
        bias.copy_(kept)


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("kind", STAGE2)
def test_texts_are_identical(kind: str, beams: int, exported: dict[str, Exported]) -> None:
    case, pixels = exported[kind], images()
    theirs, processor = case.theirs(), case.processor()
    assert isinstance(theirs, transformers.Blip2ForConditionalGeneration)
    picture = Image.new("RGB", (56, 56))
    seen = set()
    for prompt in PROMPTS:
        inputs = processor(images=[picture] * 2, text=[prompt] * 2, return_tensors="pt")
        inputs["pixel_values"] = pixels
        ids = theirs.generate(**inputs, num_beams=beams, max_new_tokens=12, min_new_tokens=1)
        if not theirs.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        texts = [t.strip() for t in processor.batch_decode(ids, skip_special_tokens=True)]
        ours = case.model.generate(
            {"image": pixels, "prompt": prompt}, num_beams=beams, max_new_tokens=12
        )
        assert ours == texts
        seen |= set(ours)
    assert len(seen) > 1


@pytest.mark.parametrize("kind", STAGE2)
def test_prompts_become_the_ids_that_the_model_knows(
    kind: str, exported: dict[str, Exported]
) -> None:
    case = exported[kind]
    ids = case.processor()(text="a photo of", images=Image.new("RGB", (9, 9))).input_ids
    codec = case.model.language.codec
    slots = [case.config["image_token_index"]] * 8
    assert list(ids[0]) == [*slots, *codec.leading, *codec.plain("a photo of"), *codec.trailing]


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_gives_our_pixels(kind: str, exported: dict[str, Exported]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (41, 73, 3), np.uint8)
    picture = Image.fromarray(noise)
    for backend in ("pil",):
        processor = transformers.AutoProcessor.from_pretrained(
            exported[kind].folder, backend=backend
        )
        pixels = processor(images=picture, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixels, BlipImageEval(image_size=56)(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_exactly_what_loaders_expect(
    kind: str, exported: dict[str, Exported]
) -> None:
    case = exported[kind]
    lm = None if kind == "stage1" else case.model.language.model
    assert set(load_file(case.folder / "model.safetensors")) == expected_names(kind, lm)
    cls = getattr(transformers, CLASSES[kind])
    _, report = cls.from_pretrained(case.folder, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]


@pytest.mark.parametrize("kind", STAGE2)
def test_the_configuration_of_a_captioner(kind: str, exported: dict[str, Exported]) -> None:
    case, config = exported[kind], exported[kind].config
    codec = case.model.language.codec
    text, processor = config["text_config"], case.processor()
    assert (config["model_type"], config["architectures"]) == ("blip-2", [CLASSES[kind]])
    assert text["architectures"] == [type(case.model.language.model).__name__]
    stop = text["eos_token_id"]
    assert (stop if isinstance(stop, list) else [stop]) == codec.stop
    assert isinstance(text["bos_token_id"], int)
    vocabulary = processor.tokenizer.get_vocab()
    assert vocabulary["<image>"] == config["image_token_index"] < text["vocab_size"]
    assert config["num_query_tokens"] == processor.num_query_tokens == 8
    causal = case.model.language.kind == "causal"
    assert processor.tokenizer.padding_side == ("left" if causal else "right")
    assert config["qformer_config"]["use_qformer_text_input"] is False
    assert (config["dtype"], config["vision_config"]["layer_norm_eps"]) == ("float32", 1e-6)
    generation = json.loads((case.folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["max_new_tokens"]) == (stop, 30)
    for name in ("preprocessor_config.json", "processor_config.json", "README.md"):
        assert (case.folder / name).is_file()
    assert str(case.folder.parent) not in (case.folder / "config.json").read_text()


def test_opt_stops_at_a_line_break(exported: dict[str, Exported]) -> None:
    assert exported["opt"].config["text_config"]["eos_token_id"] == [202, 2]


def test_t5_keeps_its_own_head_and_activation(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    text = exported["t5"].config["text_config"]
    assert (text["tie_word_embeddings"], text["dense_act_fn"]) == (False, "gelu")
    theirs = exported["t5"].theirs()
    lm = theirs.language_model
    assert not torch.equal(lm.lm_head.weight, lm.shared.weight)
    assert lm.config.scale_decoder_outputs is False
    theirs.save_pretrained(tmp_path)  # and what they save, we read
    ours = from_hf(tmp_path_with_tokenizer(exported["t5"].folder, tmp_path))
    assert torch.equal(ours.language.model.lm_head.weight, lm.lm_head.weight)


def tmp_path_with_tokenizer(source: Path, target: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


def test_a_spare_row_is_used_and_without_one_a_single_row_is_added(
    exported: dict[str, Exported],
) -> None:
    spare = exported["llama"]
    assert spare.config["image_token_index"] == 300
    assert spare.config["text_config"]["vocab_size"] == 303
    grown = exported["opt"]
    assert grown.config["image_token_index"] == 480
    assert grown.config["text_config"]["vocab_size"] == 481
    table = load_file(grown.folder / "model.safetensors")[
        "language_model.model.decoder.embed_tokens.weight"
    ]
    own = grown.model.language.embedding.weight
    assert len(own) == 480  # the live model did not grow
    assert torch.equal(table[:480], own)
    assert torch.equal(table[480], own[rare_token(grown.model.language.tokenizer, 480)])


def test_a_tokenizer_is_told_what_to_put_around_a_text(tmp_path: Path) -> None:
    """Some copies of OPT's tokenizer leave out the token that every text began with."""
    source = DATA / "lavis_opt" / "tokenizer"
    plain = transformers.AutoTokenizer.from_pretrained(source, add_bos_token=False)
    codec = TextCodec(plain, "\n", "opt", begins_with=2)
    told, _ = with_image_token(plain, 481, "left")
    dress_like(told, codec)
    told.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("a photo")["input_ids"] == [2, *plain("a photo")["input_ids"]]
    assert plain("a photo")["input_ids"] == codec.plain("a photo")


def test_a_tokenizer_that_is_too_large_is_refused() -> None:
    with pytest.raises(UserError, match=r"300 tokens, the language model 250 rows"):
        with_image_token(tiny_tokenizer(), 250, "left")


def test_the_live_model_goes_on_unchanged(exported: dict[str, Exported]) -> None:
    lm = exported["llama"].model.language.model
    assert lm.config.vocab_size == 303
    assert lm.config._attn_implementation == "sdpa"
    assert exported["llama"].model.language.tokenizer.get_vocab().get("<image>") is None
    assert lm.config.eos_token_id == 2


def test_a_target_in_use_is_refused(exported: dict[str, Exported], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_hf(exported["opt"].model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_large_models_are_sharded_and_half_precision_is_said(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    case = exported["llama"]
    export_hf(case.model, tmp_path / "bf16", dtype=torch.bfloat16, max_shard_size="100KB")
    files = sorted(file.name for file in (tmp_path / "bf16").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0].startswith("model-00001-of-")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "bf16")
    assert theirs.dtype == torch.bfloat16
    assert load_hf(tmp_path / "bf16").state["llm_proj.weight"].dtype == torch.bfloat16


def test_the_model_card(exported: dict[str, Exported]) -> None:
    card = (exported["opt"].folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    for word in ("AutoModelForImageTextToText", "vision tower", "bicubic", "Limits"):
        assert word in card
    assert "Blip2ForImageTextRetrieval" in (exported["stage1"].folder / "README.md").read_text()


# ---- the way back


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_to_the_bit(kind: str, exported: dict[str, Exported]) -> None:
    case = exported[kind]
    assert is_hf_folder(case.folder)
    model = from_hf(case.folder)
    assert type(model) is type(case.model) or kind == "stage1"
    ours, again = distinct_tensors(case.model), distinct_tensors(model)
    assert ours.keys() == again.keys()
    for name, tensor in ours.items():
        assert torch.equal(again[name][: len(tensor)] if tensor.ndim else again[name], tensor), name
    pixels = images()
    if kind != "stage1":
        samples = {"image": pixels, "prompt": "a photo of"}
        assert model.generate(samples) == case.model.generate(samples)
        state = load_file(case.folder / "model.safetensors")
        out = to_hf(
            {n.replace("visual_encoder.model.", "visual_encoder."): t for n, t in again.items()}
        )
        assert out.state.keys() == state.keys()
        assert all(torch.equal(out.state[name], state[name]) for name in state)


def foreign(folder: Path, exported: Exported) -> Path:
    """The folder as others write it: without what only we put there."""
    folder.mkdir()
    for file in exported.folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_foreign_stage_1_has_no_language_head(
    exported: dict[str, Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = from_hf(foreign(tmp_path / "itm", exported["stage1"]))
    assert "no language head" in caplog.text
    assert model.temp.item() == pytest.approx(0.07)
    samples = {"image": images(), "text_input": ["a cat", "a dog"]}
    for head in ("itm", "itc"):
        ours = scores(exported["stage1"].model, samples, head)
        torch.testing.assert_close(scores(model, samples, head), ours)


def scores(model: Any, samples: dict[str, Any], head: str) -> Tensor:
    with torch.no_grad():
        tokens = model.encode_image(samples["image"])
        if head == "itc":
            return model.project_image(model.read_image(tokens)[0])
        text = model.pack(samples["text_input"])
        memory = model.Qformer.image_memory(tokens)
        return model.itm_head(
            model.Qformer.encode_pairs(model.query_tokens, text.ids, text.mask, memory)
        ).mean(1)


def test_a_foreign_opt_ends_with_a_line_break_and_keeps_its_grown_vocabulary(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    folder = foreign(tmp_path / "opt", exported["opt"])
    config = exported["opt"].config
    config = {**config, "text_config": {**config["text_config"], "eos_token_id": 202}}
    (folder / "config.json").write_text(json.dumps(config))
    arch, found = hf_config(folder)
    assert arch == "blip2_opt"
    assert found["language"]["end"] == "\n"
    assert found["vision"] == {
        "name": "eva",
        "image_size": 56,
        "weights": "none",
        "options": {
            "width": 64,
            "depth": 3,
            "heads": 4,
            "inner_width": 166,
            "patch_size": 14,
            "norm_eps": 1e-6,
            "qkv_bias": True,
        },
    }
    assert from_hf(folder).language.embedding.weight.shape == (481, 64)


def test_other_models_and_damaged_folders_say_so(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "instructblip"}')
    assert not is_hf_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a 'instructblip' model; expected 'blip-2'"):
        load_hf(tmp_path)
    folder = foreign(tmp_path / "cut", exported["llama"])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable safetensors"):
        load_hf(folder)


def test_the_published_tower_is_recognised() -> None:
    from lavislite.models.blip2.hf_import import _vision

    assert _vision(transformers.Blip2VisionConfig(), None) == {
        "name": "eva_clip_g",
        "image_size": 224,
        "weights": "none",
    }
