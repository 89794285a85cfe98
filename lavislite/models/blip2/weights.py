"""Weights from elsewhere: LAVIS checkpoints, folders of Hugging Face's BLIP-2, and our own runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from lavislite.common.errors import CheckpointError, ConfigError
from lavislite.common.io import read_json, require_path
from lavislite.common.logging import get_logger
from lavislite.common.tensors import load_tensors
from lavislite.common.transfer import fetch
from lavislite.models.base import BaseModel, check_state, copy_tensors, distinct_tensors
from lavislite.models.blip2.lavis_names import VISION, WORDS, from_lavis, inner_prefix, to_lavis
from lavislite.models.blip2.stage2_weights import (
    check_queries,
    check_text_branch,
    fit_stage2,
    is_stage2,
    no_text_branch,
)
from lavislite.models.vision.positions import interpolate_positions

__all__ = [
    "checkpoint_in",
    "from_lavis",
    "holds_tower",
    "load_pretrained",
    "load_state",
    "look_at",
    "look_for_text",
    "run_tokenizer",
    "sources",
    "to_lavis",
]

logger = get_logger(__name__)

State = Mapping[str, Tensor]


def sources(pretrained: Any) -> list[str]:
    """``model.pretrained`` as a list: it is one source, several, or null.

    Raises:
        ConfigError: it is something else.
    """
    listed = list(pretrained) if isinstance(pretrained, list | tuple) else [pretrained]
    if listed == [None]:
        return []
    if not all(isinstance(source, str | Path) and str(source) for source in listed):
        raise ConfigError(
            "model.pretrained: expected a run folder, file or URL, or a list of them, saw "
            f"{pretrained!r}"
        )
    return [str(source) for source in listed]


def load_pretrained(model: BaseModel, source: str | Path | Sequence[str]) -> None:
    """Load a LAVIS checkpoint, a folder of Hugging Face's, a file, or one of our runs into `model`.

    Frozen parts may be absent from it. A tower or language model inside is loaded even when it is
    frozen here, the tower's position embeddings fitted to this image size. A stage-2 model takes
    from a stage-1 checkpoint what it has itself. Of several sources, each in turn replaces what it
    holds; what one lacks another must have.

    Raises:
        CheckpointError: a checkpoint belongs to another model; names and shapes say how.
    """
    load_states(model, ((str(one), _checked(model, one)) for one in sources(source)))


def _checked(model: BaseModel, source: str) -> State:
    """The tensors of `source`, which rests on the same frozen parts as `model`."""
    path = checkpoint_in(fetch(source))
    if (path / "meta.json").is_file():
        model.check_identity(read_json(path / "meta.json")["identity"])
    return _read(path)


def _read(path: Path) -> State:
    """The tensors at `path`, those of Hugging Face's format under our names."""
    from lavislite.models.blip2.hf_import import is_hf_folder, load_hf

    return load_hf(path).state if is_hf_folder(path) else load_tensors(path)


def load_state(model: BaseModel, state: State, origin: str) -> None:
    """`load_pretrained` for tensors at hand.

    Raises:
        CheckpointError: see there.
    """
    load_states(model, [(origin, state)])


def load_states(model: BaseModel, states: Iterable[tuple[str, State]]) -> None:
    """`load_pretrained` for several (origin, tensors), one in memory at a time.

    Raises:
        CheckpointError: see there.
    """
    own = distinct_tensors(model)
    origins: list[str] = []
    given: set[str] = set()
    allowed: set[str] = set()
    ours: dict[str, Tensor] = {}
    for origin, state in states:
        if origins:  # more follows what was read before
            check_state(ours, own, origins[-1], allow_missing=tuple(own))
            copy_tensors(ours, own)
        ours, missing = _fit(model, state, own, origin)
        origins.append(origin)
        given |= ours.keys()
        allowed |= set(missing)
    together = " and ".join(origins)
    if is_stage2(own):
        check_text_branch(own, given, together)
    check_state(ours, own, together, allow_missing=[*allowed, *(given - ours.keys())])
    copy_tensors(ours, own)


def _fit(
    model: BaseModel, state: State, own: State, origin: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What of `state` belongs into `model`, under our names, and what it may leave out."""
    is_clip = VISION + "positional_embedding" in state
    ours = from_lavis(state)
    inner = inner_prefix(own)
    if inner:
        ours = {_nest(name, inner): tensor for name, tensor in ours.items()}
    _fit_positions(ours, own, align_corners=is_clip)
    allowed: tuple[str, ...] = (VISION,)
    if is_stage2(own):
        ours, more = fit_stage2(ours, model, origin)
        allowed += more
    elif is_stage2(ours):
        raise CheckpointError(
            f"{origin} is a stage-2 checkpoint (it has a projection to a language model), which "
            "lacks what stage 1 trains. Start from a stage-1 checkpoint, or name a stage-2 model "
            "in model.arch."
        )
    return ours, allowed


def look_at(source: str | Path, queries: Sequence[int]) -> None:
    """See beforehand whether the local checkpoint `source` can be a start; URLs are left alone.

    Args:
        queries: shape of the query tokens.

    Raises:
        UserError: there is none.
        CheckpointError: it is damaged, or was trained with other queries.
    """
    from lavislite.models.blip2.hf_import import is_hf_folder

    if len(urlsplit(str(source)).scheme) > 1:
        return
    path = checkpoint_in(require_path(source, "checkpoint"))
    if not is_hf_folder(path):
        check_queries(load_tensors(path), queries, str(source))


def look_for_text(pretrained: Any) -> None:
    """See beforehand that some of the `sources` has a text branch, when all are local files.

    Raises:
        CheckpointError: none has.
    """
    from lavislite.models.blip2.hf_import import is_hf_folder

    found = sources(pretrained)
    if not found or any(len(urlsplit(source).scheme) > 1 for source in found):
        return
    paths = [checkpoint_in(require_path(source, "checkpoint")) for source in found]
    if not any(is_hf_folder(path) or WORDS in load_tensors(path) for path in paths):
        raise no_text_branch(" and ".join(found))


def holds_tower(source: str | Path) -> bool:
    """The checkpoint brings the weights of its vision tower.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    return any(name.startswith(VISION) for name in _read(checkpoint_in(fetch(source))))


def checkpoint_in(path: Path) -> Path:
    """The checkpoint a path means: of a run folder the best, else the last; others as they are.

    The weights inside a checkpoint folder mean the folder, which knows what they belong to.
    """
    for pointer in ("checkpoint_best", "last"):
        if (path / "checkpoints" / pointer).exists():
            return (path / "checkpoints" / pointer).resolve()
    if path.is_file() and (path.parent / "meta.json").is_file():
        return path.parent.resolve()
    return path


def run_tokenizer(pretrained: Any) -> str | None:
    """Folder of the vocabulary that the first of `sources` carries which carries one.

    Raises:
        UserError: a local path does not exist.
    """
    return next(filter(None, map(_tokenizer_of, sources(pretrained))), None)


def _tokenizer_of(source: str) -> str | None:
    if len(urlsplit(source).scheme) > 1:  # a URL; one letter is a drive
        return None
    found = require_path(source, "checkpoint")
    path = checkpoint_in(found)
    for folder in (path, found, path.parent.parent):
        if (folder / "tokenizer" / "vocab.txt").exists():
            return str(folder / "tokenizer")
    return None


def _nest(name: str, inner: str) -> str:
    if name.startswith(VISION) and not name.startswith(VISION + inner):
        return VISION + inner + name.removeprefix(VISION)
    return name


def _fit_positions(state: dict[str, Tensor], own: State, align_corners: bool) -> None:
    for name, tensor in state.items():
        fits = name.startswith(VISION) and name.endswith("pos_embed") and name in own
        if fits and tensor.ndim == 3 and tensor.shape[1] != own[name].shape[1]:
            logger.info("%s: fitted from %s to %s", name, list(tensor.shape), list(own[name].shape))
            state[name] = interpolate_positions(
                tensor, own[name].shape[1], align_corners=align_corners
            )
