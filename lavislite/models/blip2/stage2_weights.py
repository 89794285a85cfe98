"""What a stage-2 model takes from a checkpoint: of stage 1 the bridge, of an LM what fits.

A LAVIS checkpoint leaves out its frozen language model, except for second names of tied tensors,
which are dropped here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from lavislite.common.errors import CheckpointError
from lavislite.common.logging import get_logger
from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.lavis_names import EMBEDDINGS, LANGUAGE, PROJECTION, WORDS

logger = get_logger(__name__)

State = Mapping[str, Tensor]

QUERIES = "query_tokens"
HEADS = ("temp", "vision_proj.", "text_proj.", "itm_head.", "Qformer.cls.")  # of stage 1
TEXT = (EMBEDDINGS + "word_embeddings.", EMBEDDINGS + "position_embeddings.")
_TEXT_FFN = re.compile(r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.")
# Constants that language models of earlier transformers versions kept in their state.
_OLD_BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))$")


def is_stage2(own: State) -> bool:
    """These are the tensors of a model that speaks through a language model."""
    return PROJECTION + "weight" in own


def fit_stage2(
    state: dict[str, Tensor], model: nn.Module, origin: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The part of `state` (in our names) that belongs into `model`, and what it may leave out.

    Raises:
        CheckpointError: queries or projection have other sizes; the message names both and the
            option to set.
    """
    own = distinct_tensors(model)
    allowed = ["language."]
    check_queries(state, own[QUERIES].shape, origin)
    if not is_stage2(state) and any(_is_stage1_part(name) for name in state):
        logger.info("%s: a stage-1 checkpoint; the projection to the language is new", origin)
        state = {n: t for n, t in state.items() if n in own or not _is_stage1_part(n)}
        allowed.append(PROJECTION)
    elif WORDS in own:  # InstructBLIP's have an FFN that nothing uses in the last layer, too
        state = {n: t for n, t in state.items() if n in own or not _is_text_part(n)}
    elif WORDS in state:
        raise CheckpointError(
            f"{origin} was trained with questions read by the Q-Former. Set "
            "model.qformer_text_input=true."
        )
    _check_projection(state, own, origin)
    return _fit_language(state, model, origin), tuple(allowed)


def _is_stage1_part(name: str) -> bool:
    return name.startswith(HEADS) or _is_text_part(name)


def _is_text_part(name: str) -> bool:
    return name.startswith(TEXT) or _TEXT_FFN.match(name) is not None


def check_text_branch(own: State, given: Collection[str], origin: str) -> None:
    """Raise a CheckpointError when a text branch is in `own` and nowhere in what was `given`."""
    if WORDS in own and WORDS not in given:
        raise no_text_branch(origin)


def no_text_branch(origin: str) -> CheckpointError:
    """What is said when nothing at `origin` can read questions."""
    return CheckpointError(
        f"{origin} has no text branch for the Q-Former, which model.qformer_text_input needs: add "
        "the stage-1 checkpoint first in model.pretrained."
    )


def check_queries(state: State, wanted: Sequence[int], origin: str) -> None:
    """Raise a CheckpointError when `state` has other queries than `wanted`: [1, count, width]."""
    if QUERIES not in state or tuple(state[QUERIES].shape) == tuple(wanted):
        return
    (_, count, width), (_, own_count, own_width) = state[QUERIES].shape, wanted
    raise CheckpointError(
        f"{origin} has {count} query tokens of width {width}, this model has {own_count} of width "
        f"{own_width}. Set model.num_query_tokens={count} and model.qformer.hidden_size={width}."
    )


def _check_projection(state: State, own: State, origin: str) -> None:
    name = PROJECTION + "weight"
    if name in state and len(state[name]) != len(own[name]):
        raise CheckpointError(
            f"{origin} was trained with a language model of width {len(state[name])}, this model's "
            f"is {len(own[name])} wide. Name the same one in model.language.name, or start from a "
            "stage-1 checkpoint."
        )


def _fit_language(state: State, model: nn.Module, origin: str) -> dict[str, Tensor]:
    """`state` without second names and old constants; the rest under the names the model has."""
    own = distinct_tensors(model)
    every = {name for name in model.state_dict(keep_vars=True) if name.startswith(LANGUAGE)}
    plain = {_without_adapter(name): name for name in every}
    fitted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name and not any(".lora_" in known for known in every):
            raise CheckpointError(
                f"{origin} holds LoRA weights ('{name}'). Set model.language.lora as in its run."
            )
        mine = plain.get(name, name) if name not in own else name
        tied = mine in every and mine not in own
        if not tied and (mine in own or not _is_old_buffer(mine)):
            fitted[mine] = tensor
    return fitted


def _is_old_buffer(name: str) -> bool:
    return name.startswith(LANGUAGE) and _OLD_BUFFERS.search(name) is not None


def _without_adapter(name: str) -> str:
    """The name a tensor has in the language model before LoRA wraps it."""
    return name.replace("base_model.model.", "", 1).replace(".base_layer.", ".")
