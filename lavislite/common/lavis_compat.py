"""LAVIS's YAML keys in our words: one table per section.

A key that the component itself declares is never touched, so a model of your own may well have an
`image_size`. Keys without a meaning here are dropped, and the log says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from lavislite.common.errors import ConfigError
from lavislite.common.io import cache_dir
from lavislite.common.logging import get_logger, warn_once

logger = get_logger(__name__)

MODEL_KEYS = {
    "vit_model": "vision.name",
    "image_size": "vision.image_size",
    "img_size": "vision.image_size",
    "drop_path_rate": "vision.drop_path_rate",
    "use_grad_checkpoint": "vision.grad_checkpointing",
    "vit_precision": "vision.precision",
    "freeze_vit": "vision.freeze",
    "num_query_token": "num_query_tokens",
    "cross_attention_freq": "qformer.cross_attention_freq",
    "opt_model": "language.name",
    "t5_model": "language.name",
    "llm_model": "language.name",
}

MODEL_DROPPED = {
    "apply_lemmatizer": "run.task: ok_vqa scores answers with and without lemmatisation",
}

RUN_KEYS = {
    "resume_ckpt_path": "resume",
    "max_iters": "max_steps",
    "iters_per_inner_epoch": "eval_every_steps",
    "grad_norm_clip": "clip_grad_norm",
    "val_freq": "eval_freq",
}

# Where the task writes text and has no such key of its own.
GENERATION_KEYS = {
    "max_len": "max_new_tokens",
    "min_len": "min_new_tokens",
    **{
        key: key
        for key in (
            *("use_nucleus_sampling", "num_beams", "top_p", "temperature"),
            *("repetition_penalty", "length_penalty"),
        )
    },
}

RUN_VALUES: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "amp": lambda on: ("precision", "auto" if on else "fp32"),
    "runner": lambda name: ("runner", "runner_base" if name == "runner_iter" else name),
    "lr_sched": lambda name: ("lr_sched", "constant" if name == "constant_lr" else name),
    "device": lambda name: ("device", name),
}

_LAUNCHER = "torchrun (or srun) says how many processes there are"
_NO_TEXT = "this task writes no text"
RUN_DROPPED = {
    **dict.fromkeys(
        ("world_size", "dist_url", "distributed", "dist_backend", "rank", "gpu", "local_rank"),
        _LAUNCHER,
    ),
    **dict.fromkeys((*GENERATION_KEYS, "prompt"), _NO_TEXT),
    **dict.fromkeys(
        ("num_ans_candidates", "inference_method", "answer_list"),
        "this task answers no questions",
    ),
    "use_dist_eval_sampler": "evaluation is always shared by all processes, with the same result",
    "report_metric": "metrics are always reported",
    "annotation_file": "the ground truth is the dataset being evaluated",
    "save_last": "the last checkpoint is always kept",
}

DATASET_DROPPED = {
    "data_type": "the builder knows its type of data",
    "dataset_card": "cards are in dataset_card/",
}


def translate_model(
    data: Mapping[str, Any], known: Collection[str], initial_weights: str | None = None
) -> dict[str, Any]:
    """The `model:` section `data` in our keys; `known` are the keys the model declares.

    `initial_weights` is what ``load_finetuned: false`` starts from, not the fine-tuned weights.
    """
    ours = dict(data)
    _translate_weights(ours, known, initial_weights)
    for theirs, target in MODEL_KEYS.items():
        if theirs in ours and theirs not in known and target.split(".")[0] in known:
            _put(ours, target, ours.pop(theirs), f"model.{theirs}")
    _drop(ours, "model", MODEL_DROPPED, known)
    return ours


def _translate_weights(ours: dict[str, Any], known: Collection[str], initial: str | None) -> None:
    """LAVIS's four keys for two files and whether to load them, as one: `pretrained`."""
    if "pretrained" not in known:
        return
    finetuned = ours.pop("finetuned", None) if "finetuned" not in known else None
    load_finetuned = ours.pop("load_finetuned", None) if "load_finetuned" not in known else None
    load_pretrained = ours.pop("load_pretrained", None) if "load_pretrained" not in known else None
    if finetuned and load_finetuned is not False:
        ours["pretrained"] = finetuned
    elif load_pretrained is False:
        ours["pretrained"] = None
    elif load_finetuned is False and "pretrained" not in ours and initial is not None:
        ours["pretrained"] = initial
    elif ours.get("pretrained") in ("", []):
        ours["pretrained"] = None


def translate_dataset(name: str, data: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """One entry of `datasets:` in our keys; `known` are the keys the builder declares."""
    ours = dict(data)
    _drop(ours, f"datasets.{name}", DATASET_DROPPED, known)
    if "build_info" in ours and "build_info" not in known:
        info = ours.pop("build_info") or {}
        if not isinstance(info, dict) or set(info) - {"annotations", "images"}:
            raise ConfigError(
                f"datasets.{name}.build_info: expected `annotations` and `images`, saw "
                f"{', '.join(map(str, info)) if isinstance(info, dict) else repr(info)}"
            )
        if info.get("annotations"):
            ours["annotations"] = {
                split: _annotation(entry) for split, entry in info["annotations"].items()
            }
        if info.get("images"):
            images = info["images"]
            ours["images"] = images.get("storage", images) if isinstance(images, dict) else images
    return ours


def _annotation(entry: Any) -> Any:
    """LAVIS names a source (`url`) and a copy in the cache (`storage`); we read one of the two."""
    if not isinstance(entry, dict):
        return entry
    urls, copies = _list(entry.get("url")), _list(entry.get("storage"))
    if not urls or not copies:
        chosen = urls or copies
    elif len(urls) != len(copies):
        raise ConfigError(f"annotations: {len(urls)} url entries but {len(copies)} storage entries")
    else:
        chosen = [_source(url, copy) for url, copy in zip(urls, copies, strict=True)]
    return chosen[0] if len(chosen) == 1 else chosen


def _source(url: str, copy: str) -> str:
    """A local source itself (edits must count); else LAVIS's copy if it is there; else the URL."""
    if urlsplit(url).scheme not in ("http", "https"):
        return url
    found = [path for path in (cache_dir() / copy, cache_dir().parent / copy) if path.exists()]
    return str(found[0]) if found else url


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def translate_run(data: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The `run:` section in our keys; `known` are the keys the task declares."""
    ours = dict(data)
    for theirs, change in RUN_VALUES.items():
        if theirs in ours:
            key, value = change(ours.pop(theirs))
            ours.setdefault(key, value)
    for theirs, target in RUN_KEYS.items():
        if theirs in ours and theirs not in known:
            ours.setdefault(target, ours.pop(theirs))
    if "generation" in known:
        _translate_generation(ours, known)
    _drop(ours, "run", RUN_DROPPED, known)
    return ours


def _translate_generation(ours: dict[str, Any], known: Collection[str]) -> None:
    """LAVIS's flat keys into `generation:`; its lengths count as they did there."""
    for theirs, target in GENERATION_KEYS.items():
        if theirs in ours and theirs not in known:
            _put(ours, f"generation.{target}", ours.pop(theirs), f"run.{theirs}")
            if theirs in ("max_len", "min_len"):
                _put(ours, "generation.lavis_lengths", True, f"run.{theirs}")


def move_ratios(data: Mapping[str, Any]) -> dict[str, Any]:
    """The layer with ``run.train_dataset_ratios: {name: r}`` moved to ``datasets.<name>.ratio``."""
    run = data.get("run")
    if not run or "train_dataset_ratios" not in run:
        return dict(data)
    rest = {key: value for key, value in run.items() if key != "train_dataset_ratios"}
    datasets = {name: dict(entry or {}) for name, entry in (data.get("datasets") or {}).items()}
    for name, ratio in (run["train_dataset_ratios"] or {}).items():
        datasets.setdefault(name, {}).setdefault("ratio", float(ratio))
    return {**data, "run": rest, "datasets": datasets}


def _drop(
    ours: dict[str, Any], section: str, reasons: Mapping[str, str], known: Collection[str]
) -> None:
    for key in [key for key in ours if key in reasons and key not in known]:
        del ours[key]
        full = f"{section}.{key}"
        warn_once(logger, ("lavis key", full), f"{full} has no effect: {reasons[key]}.")


def _put(data: dict[str, Any], path: str, value: Any, theirs: str) -> None:
    """Set ``a.b``; a value given in our own words stays."""
    *parents, last = path.split(".")
    for key in parents:
        inner = data.get(key) or {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{theirs}: cannot stand beside `{key}: {inner}`; write one of them")
        data[key] = data = dict(inner)
    data.setdefault(last, value)
