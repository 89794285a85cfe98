"""A folder that `transformers` and vLLM load, from one of our models.

Captioners become `Blip2ForConditionalGeneration`, stage-1 models `Blip2ForImageTextRetrieval`.
What Hugging Face has no place for (the language head and the temperature of stage 1, and our own
options) goes into the sub-folder ``lavislite``, which only `hf_import` reads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.common.errors import UserError
from lavislite.common.io import atomic_write
from lavislite.common.version import __version__
from lavislite.models.blip2 import hf_config
from lavislite.models.blip2.card import model_card
from lavislite.models.blip2.hf_format import THEIR_LM, is_stage1, to_hf
from lavislite.models.blip2.hf_tokens import grow_by_one, with_image_token
from lavislite.models.blip2.merged import merged_state
from lavislite.models.quantize import check_whole
from lavislite.models.vision.presets import CLIP_MEAN, CLIP_STD

OURS = "lavislite"  # sub-folder
SHARD = "5GB"
GENERATION = "generation_config.json"


def export_hf(
    model: Any,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    max_new_tokens: int = 30,
    max_shard_size: str = SHARD,
) -> Path:
    """Write `model` to `folder` in Hugging Face's format; the model stays as it is.

    The folder appears whole or not at all.

    Args:
        dtype: of all weights; None keeps each tensor's.
        mean, std: of the image processor; None means the tower's, else CLIP's.
        max_new_tokens: what `generate` writes at most when it is not told.

    Raises:
        UserError: the format cannot express the model, or there is something at `folder`.
    """
    target = Path(folder).expanduser()
    require_free(target)
    check_whole(model)
    if getattr(model.cfg, "qformer_text_input", False):
        raise UserError(
            "The model cannot be exported: its Q-Former reads questions (qformer_text_input), for "
            "which transformers' BLIP-2 has no place. Convert it --to lavis or --to lavislite."
        )
    vision = hf_config.vision_config(model.visual_encoder)
    _, inner = hf_config.timm_tower(model.visual_encoder)
    converted = to_hf(merged_state(model), inner)
    stage1 = is_stage1(model.state_dict())
    state = converted.state
    if stage1:
        config, tokenizer = _retrieval_config(model, vision)
    else:
        config, tokenizer = _writing_config(model, vision, state)
    state = {name: plain_tensor(tensor, dtype) for name, tensor in state.items()}
    config["dtype"] = _common_dtype(state)
    images = {
        "mean": list(mean or getattr(model.visual_encoder, "image_mean", None) or CLIP_MEAN),
        "std": list(std or getattr(model.visual_encoder, "image_std", None) or CLIP_STD),
        "size": vision["image_size"],
    }

    def write(part: Path) -> None:
        part.mkdir()
        write_weights(state, part, max_shard_size)
        write_json(config, part / "config.json")
        if not stage1:
            write_json(_generation(config["text_config"], max_new_tokens), part / GENERATION)
        _write_processor(part, tokenizer, images, None if stage1 else model.cfg.num_query_tokens)
        _write_ours(part / OURS, model, converted.left_out)
        (part / "README.md").write_text(model_card(model, config, images), encoding="utf-8")

    atomic_write(target, write)
    return target


def require_free(folder: Path) -> None:
    """Raise UserError when there is something at `folder`: what is there is not overwritten."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists already. Name a new folder, or remove it first.")


# ------------------------------------------------------------------------------------------- state


def plain_tensor(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` on the CPU, compact, and when it holds fractions in `dtype`."""
    cast = dtype is not None and tensor.is_floating_point()
    return tensor.detach().to("cpu", dtype if cast else None).contiguous()


def _common_dtype(state: Mapping[str, Tensor]) -> str:
    """The one type of all tensors, or float32, which holds the values of every other."""
    found = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    return found.pop() if len(found) == 1 else "float32"


# -------------------------------------------------------------------------------------- the config


def _retrieval_config(model: Any, vision: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    qformer = hf_config.qformer_config(model, vocab_size=len(model.tokenizer), text=True)
    config = _blip2(model, vision, qformer, {}, "Blip2ForImageTextRetrieval")
    config["image_text_hidden_size"] = model.cfg.embed_dim
    return config, copy.deepcopy(model.tokenizer)


def _writing_config(
    model: Any, vision: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], Any]:
    """The configuration of a captioner and its tokenizer; `state` may get a row for ``<image>``."""
    language = model.language
    lm, codec, kind = language.model, language.codec, language.kind
    text = hf_config.text_config(lm, kind)
    rows = lm.get_input_embeddings().weight.shape[0]
    side = "left" if kind == "causal" else "right"
    tokenizer, image_token = with_image_token(language.tokenizer, rows, side)
    dress_like(tokenizer, codec)
    if image_token == rows:
        grow_by_one(state, lm, THEIR_LM, language.tokenizer)
        text["vocab_size"] = rows + 1
    text["eos_token_id"] = codec.stop[0] if len(codec.stop) == 1 else list(codec.stop)
    text["pad_token_id"] = codec.pad
    text["bos_token_id"] = codec.start  # their generate() without a prompt begins with it
    qformer = hf_config.qformer_config(model, vocab_size=30_523, text=False)
    config = _blip2(model, vision, qformer, text, "Blip2ForConditionalGeneration")
    config["image_token_index"] = image_token
    return config, tokenizer


def _blip2(
    model: Any, vision: dict[str, Any], qformer: dict[str, Any], text: dict[str, Any], cls: str
) -> dict[str, Any]:
    """``config.json``: their configuration class fills in what is not ours to say."""
    from transformers import Blip2Config

    full = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=copy.deepcopy(text) or None,
        num_query_tokens=model.cfg.num_query_tokens,
    ).to_dict()
    full["architectures"] = [cls]
    # Their classes leave out the one, and T5's forgets the other.
    kept = ("architectures", "tie_word_embeddings")
    full["text_config"] |= {key: text[key] for key in kept if key in text}
    return full


def dress_like(tokenizer: Any, codec: Any) -> None:
    """Let `tokenizer` put around a text what the model was trained with.

    Raises:
        UserError: it cannot be told to.
    """
    wanted = [*codec.leading, *codec.plain("a"), *codec.trailing]
    if list(tokenizer("a")["input_ids"]) == wanted:
        return
    if hasattr(tokenizer, "backend_tokenizer"):
        from tokenizers.processors import TemplateProcessing

        before, after = map(tokenizer.convert_ids_to_tokens, (codec.leading, codec.trailing))
        around = [*before, *after]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=" ".join([*before, "$A", *after]),
            special_tokens=list(zip(around, [*codec.leading, *codec.trailing], strict=True)),
        )
    if list(tokenizer("a")["input_ids"]) != wanted:
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} does not put the ids {codec.leading} before "
            "a text, as the model expects. Give model.language.name a tokenizer that does."
        )


def _generation(text: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    known = {key: text[key] for key in keys if text.get(key) is not None}
    return {**known, "max_new_tokens": max_new_tokens}


# --------------------------------------------------------------------------------------- the files


def write_weights(state: dict[str, Tensor], folder: Path, max_shard_size: str = SHARD) -> None:
    """``model.safetensors``, or several with an index when there is more than `max_shard_size`."""
    from huggingface_hub import save_torch_state_dict

    metadata = {"format": "pt", "lavislite_version": __version__}
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, metadata=metadata)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """A JSON file for people to read."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_processor(
    folder: Path, tokenizer: Any, images: Mapping[str, Any], num_query_tokens: int | None
) -> None:
    """Tokenizer, chat template and image processor; the latter also where older readers look."""
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    side = {"height": images["size"], "width": images["size"]}
    image_processor = BlipImageProcessorPil(
        size=side, image_mean=images["mean"], image_std=images["std"]
    )
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=num_query_tokens)
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)


def _write_ours(folder: Path, model: Any, left_out: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    separate = any(name.endswith("attn.q_bias") for name in model.state_dict())
    write_json({"model": asdict(model.cfg), "fused_bias": not separate}, folder / "model.json")
    if left_out:
        save_file(
            {name: plain_tensor(t, None) for name, t in left_out.items()},
            folder / "extra.safetensors",
        )
