"""``lavislite convert``: a model from one format to another, and the proof that it is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.io import atomic_write
from lavislite.common.registry import did_you_mean
from lavislite.common.tensors import load_tensors
from lavislite.sources import Source, from_hf, open_source

__all__ = ["convert", "from_hf", "open_source"]

FORMATS = ("hf", "lavis", "lavislite")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 2_000_000_000  # parameters: a second copy for the check may not fit into memory
TOLERANCE = 1e-3  # of a logit in float32; differences of order come to about 1e-6


def convert(
    source: str | Path,
    dest: str | Path,
    to: str,
    *,
    arch: str | None = None,
    model_type: str | None = None,
    options: Sequence[str] = (),
    dtype: str | None = None,
    verify: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the model at `source` to `dest` in another format.

    Args:
        source: a run, checkpoint or model folder of ours, a LAVIS checkpoint, or a folder in
            Hugging Face's format.
        to: "hf", "lavis" or "lavislite".
        arch, model_type: what a checkpoint file holds when it does not say so itself.
        options: ``model.key=value`` words that change the source's configuration.
        dtype: "fp32", "bf16" or "fp16" for all weights; None keeps each tensor's.
        verify: load what was written and compare.
        say: gets a line for everything that was done.

    Raises:
        UserError: the source cannot be read, the format cannot express it, or `dest` exists.
        CheckpointError: what was written is not what was read.
    """
    kind = _choice("--to", to, FORMATS)
    assert kind is not None
    chosen = _choice("--dtype", dtype, tuple(DTYPES))
    cast = DTYPES[chosen] if chosen is not None else None
    found = open_source(source, arch=arch, model_type=model_type, options=options)
    count = sum(found.model.parameter_counts)
    say(f"read {source}: {found.model.cfg.arch}, {count:,} parameters")
    write = {"hf": _write_hf, "lavis": _write_lavis, "lavislite": _write_native}[kind]
    written = write(found, Path(dest).expanduser(), cast)
    say(f"wrote {written}: {_size(written)}")
    if not verify:
        return written
    if count > LARGE:
        say(f"not checked: more than {LARGE:,} parameters; loading it again takes as much memory")
        return written
    check = {"hf": _check_hf, "lavis": _check_lavis, "lavislite": _check_native}[kind]
    say(f"checked: {check(found.model, written, cast)}")
    return written


# ----------------------------------------------------------------------------------------- writing


def _write_hf(source: Source, dest: Path, dtype: torch.dtype | None) -> Path:
    from lavislite.models.blip2.hf_export import export_hf

    images = source.preprocess.get("vis_processor", {}).get("eval", {})
    return export_hf(
        source.model, dest, dtype=dtype, mean=images.get("mean"), std=images.get("std")
    )


def _write_native(source: Source, dest: Path, dtype: torch.dtype | None) -> Path:
    from lavislite.models.blip2.native import save_native

    return save_native(source.model, dest, dtype=dtype, preprocess=source.preprocess)


def _write_lavis(source: Source, dest: Path, dtype: torch.dtype | None) -> Path:
    """One file as LAVIS writes it, with all weights, frozen ones too."""
    from lavislite.models.blip2.hf_export import require_free
    from lavislite.models.blip2.hf_tokens import vocabulary_file
    from lavislite.models.quantize import check_whole

    if dest.suffix not in (".pth", ".pt"):
        raise UserError(f"{dest}: LAVIS's format is one file; name it *.pth.")
    require_free(dest)
    model = source.model
    check_whole(model)
    config: dict[str, Any] = {"model": asdict(model.cfg)}
    if model.tokenizer is not None:  # one made from data exists nowhere else
        config["vocabulary"] = vocabulary_file(model.tokenizer, len(model.tokenizer))
    content = {"model": _lavis_state(model, dtype), "config": config, "epoch": 0}
    atomic_write(dest, lambda part: torch.save(content, part))
    return dest


def _lavis_state(model: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    from lavislite.models.blip2.hf_export import plain_tensor
    from lavislite.models.blip2.merged import merged_state
    from lavislite.models.blip2.weights import to_lavis

    family = getattr(model, "family", "llm")
    state = to_lavis(merged_state(model), family, model.cfg.qformer.max_positions)
    return {name: plain_tensor(tensor, dtype) for name, tensor in state.items()}


# ---------------------------------------------------------------------------------------- checking


def _check_hf(model: Any, written: Path, dtype: torch.dtype | None) -> str:
    from lavislite.models.blip2.hf_check import greatest_difference

    difference = greatest_difference(model, written)
    exact = dtype in (None, torch.float32) and all(
        p.dtype == torch.float32 for p in model.parameters()
    )
    if exact and not difference < TOLERANCE:
        raise CheckpointError(
            f"{written}: loaded by transformers its logits differ by {difference:.2g}; expected "
            f"less than {TOLERANCE:g}. Do not use it."
        )
    return f"loaded by transformers, its logits differ by at most {difference:.1e}"


def _check_lavis(model: Any, written: Path, dtype: torch.dtype | None) -> str:
    return _same(_lavis_state(model, dtype), load_tensors(written), written)


def _check_native(model: Any, written: Path, dtype: torch.dtype | None) -> str:
    from lavislite.models.base import distinct_tensors
    from lavislite.models.blip2.hf_export import plain_tensor

    again = open_source(written).model
    ours = {name: plain_tensor(t, dtype) for name, t in distinct_tensors(model).items()}
    theirs = {n: t.to(ours[n].dtype) for n, t in distinct_tensors(again).items() if n in ours}
    return _same(ours, theirs, written)


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], written: Path) -> str:
    lacking = [name for name in ours if name not in theirs]
    other = [n for n, t in ours.items() if n in theirs and not torch.equal(t, theirs[n].cpu())]
    if lacking or other:
        raise CheckpointError(f"{written}: '{(lacking + other)[0]}' is not what was written.")
    return f"loaded again, all {len(ours)} tensors are equal"


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    total = sum(file.stat().st_size for file in files)
    return f"{len(files)} file{'s' if len(files) != 1 else ''}, {total / 1e6:,.1f} MB"


def _choice(option: str, value: str | None, known: tuple[str, ...]) -> str | None:
    """`value` when it is one of `known`.

    Raises:
        ConfigError: it is not; the nearest is offered.
    """
    if value is not None and value not in known:
        raise ConfigError(
            f"{option}: '{value}' is unknown.{did_you_mean(value, known)} Known: {', '.join(known)}"
        )
    return value
