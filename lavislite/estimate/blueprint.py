"""The model of a project file at its true size, without numbers: shapes, types, and no memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lavislite.common import catalog
from lavislite.common.config import Config
from lavislite.common.errors import ConfigError, UserError
from lavislite.estimate.stand_ins import BERT_VOCABULARY, qformer_tokenizer, stand_in_language
from lavislite.models.blip2.bridge import Blip2Bridge
from lavislite.models.blip2.hub import BERT
from lavislite.models.vision.base import build_vision


def build_blueprint(cfg: Config, precision: str, notes: list[str], device: str = "meta") -> Any:
    """The model of `cfg` with random weights, in training mode; nothing is read or downloaded.

    Args:
        precision: what "auto" means for frozen parts: fp32, bf16 or fp16.
        notes: receives sentences about what had to be assumed.
        device: on "meta" it takes no memory; elsewhere it can be measured.

    Raises:
        ConfigError: it is no BLIP-2 model.
        UserError: a part is neither known here nor to be had.
    """
    target: Any = catalog.models.get(cfg.model.arch)
    if not (isinstance(target, type) and issubclass(target, Blip2Bridge)):
        raise ConfigError(
            f"model.arch: estimate knows the models of BLIP-2, '{cfg.model.arch}' is none. "
            "A dry run measures any model: lavislite train --dry-run"
        )
    if cfg.model.vision.quantization is not None:
        raise ConfigError(
            "model.vision.quantization: estimate does not know quantised weights. Set it to null "
            "for an upper bound."
        )
    settings = without_weights(cfg.model, precision)
    parts: dict[str, Any] = {}
    with torch.device(device), _quiet():
        parts["vision"] = build_vision(settings.vision)
        if hasattr(settings, "language"):
            parts["language"] = stand_in_language(settings.language, notes)
        if getattr(settings, "qformer_text_input", True):
            parts["tokenizer"] = qformer_tokenizer(_vocabulary(settings.tokenizer, notes))
        model = target.from_config(settings, **parts)
    return model.train()


def without_weights(model: Any, precision: str) -> Any:
    """The options of a model that starts from random weights, in `precision` where it is auto."""
    settings = copy.deepcopy(model)
    settings.pretrained = None
    settings.qformer.init = "none"
    for part in (settings.vision, getattr(settings, "language", None)):
        if part is not None:
            part.weights = "none"
            if part.precision == "auto":
                part.precision = precision
    return settings


def _vocabulary(tokenizer: str, notes: list[str]) -> int:
    if tokenizer not in ("auto", BERT, "from_data"):
        file = Path(tokenizer).expanduser() / "vocab.txt"
        if not file.is_file():
            raise UserError(f"model.tokenizer: there is no {file}.")
        return len(file.read_text(encoding="utf-8").splitlines())
    if tokenizer == "from_data":
        notes.append(
            f"vocabulary: {BERT_VOCABULARY:,} entries, the most that is made of captions; yours "
            "may be far fewer"
        )
    return BERT_VOCABULARY


def imagine(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter, buffer and plain tensor of `model` by one without numbers.

    Tied parameters stay tied. The fake tensors say they are on the CPU.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            with mode:
                new: Tensor = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
                )
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            seen[id(tensor)] = (tensor, new)  # the old one stays, so that its id is not given again
        return seen[id(tensor)][1]

    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (
            module._parameters,
            module._buffers,
            module.__dict__,
        )
        for store in stores:
            store.update({k: fake(v) for k, v in store.items() if isinstance(v, Tensor)})


@contextmanager
def _quiet() -> Iterator[None]:
    """What a build says about weights and vocabularies does not hold here."""
    logger = logging.getLogger("lavislite")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
