"""One look at a language model before it is used: does it read image tokens as it reads words?"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.generation import GenerationOptions


def check_family(model: Any, kind: str, name: str) -> None:
    """Refuse a family whose code says that it cannot read embeddings.

    Raises:
        ConfigError: with the reason.
    """
    why = ""
    if kind == "causal":
        takes = inspect.signature(model.prepare_inputs_for_generation).parameters
        if "inputs_embeds" not in takes:
            why = "its prepare_inputs_for_generation takes no inputs_embeds"
    elif "inputs_embeds" not in inspect.signature(model.get_encoder().forward).parameters:
        why = "its encoder takes no inputs_embeds"
    per_layer = getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None)
    if per_layer:
        why = (
            "it looks up embeddings for every layer by token id (hidden_size_per_layer_input is "
            f"{per_layer}), and an image token has no id"
        )
    if why:
        raise _refusal(name, model, why)


def check_language(language: Any) -> None:
    """Try forward, backward and generation on three tokens, in evaluation mode.

    Raises:
        ConfigError: the model fails, reads embeddings differently from ids, or passes no gradient
            to the prefix.
    """
    model, name = language.model, language.name
    modes = {module: module.training for module in language.modules()}
    language.eval()
    try:
        _check_embeddings(language)
        _check_gradient(language)
        _check_generation(language)
    except UserError:
        raise
    except Exception as error:  # models fail in many ways: say which model, keep the cause
        first = (str(error).splitlines() or [""])[0]
        raise _refusal(name, model, f"{type(error).__name__}: {first}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _check_embeddings(language: Any) -> None:
    """The same words as ids and as embeddings must give the same logits."""
    device = language.embedding.weight.device
    ids = torch.tensor([(language.codec.plain("a b c") * 3)[:3]], device=device)
    extra = {"decoder_input_ids": ids} if language.kind == "seq2seq" else {}
    with language.own_precision():
        by_id = language.model(input_ids=ids, **extra, use_cache=False).logits.float()
        by_row = language.model(inputs_embeds=language.embed(ids), **extra, use_cache=False)
    gap = (by_row.logits.float() - by_id).abs().max().item()
    if not gap <= 0.02 * by_id.abs().max().item() + 1e-4:
        why = f"it reads embeddings differently from token ids (logits differ by {gap:.2g})"
        raise _refusal(language.name, language.model, why)


def _check_gradient(language: Any) -> None:
    prefix = _prefix(language).requires_grad_()
    with torch.enable_grad():
        total = language.nll(prefix, ["a b"], ["c"]).total.sum()
        gradient = torch.autograd.grad(total, prefix, allow_unused=True)[0]
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise _refusal(language.name, language.model, "no gradient reaches the image tokens")


def _check_generation(language: Any) -> None:
    options = GenerationOptions(max_new_tokens=2, num_beams=2)
    language.generate(_prefix(language), ["a"], options)


def _prefix(language: Any) -> Tensor:
    """[1, 2, hidden_size], as large as the embeddings of words; no random numbers are drawn."""
    weight = language.embedding.weight
    wave = torch.arange(2 * weight.shape[1], device=weight.device).sin().float()
    return (wave * weight.detach()[:64].float().std()).reshape(1, 2, -1)


def _refusal(name: str, model: Any, why: str) -> ConfigError:
    return ConfigError(
        f"The language model '{name}' ({type(model).__name__}) cannot read image tokens: {why}. "
        "Choose another model."
    )
