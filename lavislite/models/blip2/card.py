"""The model card that goes with an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRITING = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(folder)
inputs = processor(images=Image.open("photo.jpg"), text={prompt!r}, return_tensors="pt")
ids = model.generate(**inputs, num_beams=5, max_new_tokens=30)[:, inputs.input_ids.shape[1] :]
print(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
```

{slice_note}
"""
SLICE_CAUSAL = (
    "A decoder's `generate` repeats the prompt with its image tokens; the slice takes the new text."
)
SLICE_SEQ2SEQ = "Of an encoder-decoder, leave the slice out: `generate` gives the new text alone."
RETRIEVAL = """\
```python
from PIL import Image
from transformers import AutoProcessor, Blip2ForImageTextRetrieval

processor = AutoProcessor.from_pretrained(folder, backend="pil")
model = Blip2ForImageTextRetrieval.from_pretrained(folder)
inputs = processor(images=Image.open("photo.jpg"), text="a cat on a mat", return_tensors="pt")
match = model(**inputs, use_image_text_matching_head=True).logits_per_image.softmax(-1)[0, 1]
cosine = model(**inputs).logits_per_image[0, 0]
```

The cosine has no temperature. The language head of stage 1 has no place in this format; it is in
`lavislite/extra.safetensors`.
"""
LIMITS = """\
## Limits

- Images are squeezed to {size} x {size} pixels, without a crop. `backend="pil"` gives exactly the
  pixels of training; other backends differ by up to one grey level.
- The norm after the vision tower has an epsilon of {ln_eps:g} in lavislite and of {eps:g} here, as
  in every BLIP-2 of Hugging Face: logits differ by about 1e-7, relatively.
- The weights of the vision tower and of the language model have licences of their own.
"""


def model_card(model: Any, config: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """README.md of an exported folder: front matter, how to use it, what it was made of, limits.

    Args:
        config: the content of ``config.json``.
        images: mean, std and size of the image processor.
    """
    cfg = model.cfg
    writes = config["architectures"] == ["Blip2ForConditionalGeneration"]
    prompt = getattr(cfg, "prompt", "") or ("a photo of" if writes else "")
    kind = getattr(getattr(model, "language", None), "kind", None)
    use = RETRIEVAL
    if writes:
        note = SLICE_CAUSAL if kind == "causal" else SLICE_SEQ2SEQ
        use = WRITING.format(prompt=prompt, slice_note=note)
    vision, qformer = config["vision_config"], config["qformer_config"]
    made_of = [
        f"- vision tower: `{cfg.vision.name}`, {vision['num_hidden_layers']} blocks, "
        f"{vision['hidden_size']} wide",
        f"- Q-Former: {qformer['num_hidden_layers']} layers, {qformer['hidden_size']} wide, "
        f"{cfg.num_query_tokens} queries",
    ]
    if writes:
        made_of.append(
            f"- language model: `{cfg.language.name}` ({config['text_config']['model_type']})"
        )
    limits = LIMITS.format(
        size=images["size"], ln_eps=cfg.ln_vision_eps, eps=vision["layer_norm_eps"]
    )
    return "\n".join(
        [
            _front_matter(cfg, writes),
            f"# BLIP-2 ({cfg.arch})",
            "",
            "Exported from [lavislite](https://github.com/lavislite/lavislite).",
            "",
            *made_of,
            f"- images: mean {images['mean']}, std {images['std']}, bicubic",
            f"- weights: {config['dtype']}",
            "",
            "## Use",
            "",
            use,
            limits,
        ]
    )


def _front_matter(cfg: Any, writes: bool) -> str:
    task = "image-text-to-text" if writes else "zero-shot-image-classification"
    bases = [cfg.language.name] if writes else []
    named = [name for name in bases if name.count("/") == 1 and not name.startswith((".", "/"))]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags: [blip-2, lavislite]",
    ]
    if named:
        lines += ["base_model:", *(f"  - {name}" for name in named)]
    return "\n".join([*lines, "---", ""])
