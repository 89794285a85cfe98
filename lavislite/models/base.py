"""What every model shares: frozen parts, parameter groups, checkpoints that say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavislite.common.errors import CheckpointError
from lavislite.common.registry import did_you_mean
from lavislite.common.sharded import is_quantized, part_like
from lavislite.common.tensors import load_tensors
from lavislite.common.transfer import fetch

State = Mapping[str, Tensor]


class BaseModel(nn.Module):
    """A model the runner can train: ``forward(samples)`` returns a dictionary with ``"loss"``.

    Frozen parts stay in evaluation mode, get no gradient, and are in no checkpoint: a checkpoint
    holds their identity instead (`identity`).
    """

    Config: ClassVar[type[Any]]

    @classmethod
    def from_config(cls, cfg: Any, **parts: Any) -> BaseModel:
        """Build the model that `cfg` (an instance of ``cls.Config``) describes."""
        raise NotImplementedError(f"{cls.__name__} cannot be built from a configuration.")

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    # ---- frozen parts

    def frozen_modules(self) -> Sequence[nn.Module]:
        """Sub-modules that never train."""
        return ()

    def train(self, mode: bool = True) -> BaseModel:
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def identity(self) -> dict[str, str]:
        """Part -> name and fingerprint, for what a checkpoint relies on but does not hold."""
        return {}

    def check_identity(self, saved: Mapping[str, str]) -> None:
        """Compare the identity stored in a checkpoint with this model's.

        What follows the last ``@`` counts: the same weights may lie under another name.

        Raises:
            CheckpointError: a part differs; the message names both.
        """
        own = self.identity()
        for part, theirs in saved.items():
            if part in own and own[part].rpartition("@")[2] != theirs.rpartition("@")[2]:
                raise CheckpointError(
                    f"The checkpoint was trained with {part} '{theirs}', this model has {part} "
                    f"'{own[part]}'. Use the same {part}."
                )

    # ---- texts

    def text_preparer(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """What can be done to a batch without weights, in the process that loads it.

        A picklable function of the batch, which adds ``text_tokens``; None when there is none.
        """
        return None

    def pad_texts_to(self, multiple: int) -> None:
        """Let numbers of tokens be multiples of `multiple`, so that few shapes occur."""

    # ---- spreading over memory

    def towers(self) -> Sequence[nn.Module]:
        """Sub-modules that are stacks of layers, each reached only through its own call.

        FSDP holds their layers in parts, activation checkpointing computes them again.
        """
        return ()

    def recompute_activations(self, *, offload: bool) -> None:
        """Keep less for the backward pass in what is trained outside of the towers."""

    # ---- compiling

    def layers_to_compile(self) -> Sequence[nn.Module]:
        """Repeated layers outside of the towers, each reached only through its own call."""
        return ()

    def graphable_towers(self) -> Sequence[nn.Module]:
        """Those of `towers` that get no gradient and always see inputs of the same shape."""
        return ()

    # ---- facts

    @property
    def leaves_parameters_unused(self) -> bool:
        """Some trainable parameters get no gradient, which several processes have to know of."""
        return False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of trainable and of frozen parameters."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return trainable, sum(p.numel() for p in self.parameters()) - trainable

    # ---- optimisation

    def layer_ids(self) -> tuple[dict[str, int], int]:
        """Parameter name -> depth in the backbone, and the number of layers, for layer decay.

        Names that are absent train at the full learning rate.
        """
        return {}, 0

    def get_optimizer_params(
        self, weight_decay: float, lr_layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Parameter groups with keys params, names, weight_decay and lr_scale.

        Biases and vectors (norms) are not decayed. A parameter `k` layers below the backbone's
        output has ``lr_scale = lr_layer_decay ** k``; the lr schedule multiplies by it.
        """
        layer_of, depth = self.layer_ids()
        groups: dict[tuple[bool, int], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            decay = _is_decayed(name, parameter)
            layer = layer_of[name] if name in layer_of and lr_layer_decay != 1.0 else depth + 1
            group = groups.setdefault(
                (decay, layer),
                {
                    "params": [],
                    "names": [],
                    "weight_decay": weight_decay if decay else 0.0,
                    "lr_scale": lr_layer_decay ** (depth + 1 - layer),
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return list(groups.values())

    # ---- checkpoints

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Trainable parameters, and the buffers of modules that are not frozen; tied ones once."""
        frozen = {id(b) for module in self.frozen_modules() for b in module.buffers()}
        frozen |= {id(p) for p in self.parameters() if not p.requires_grad}
        return {n: t for n, t in distinct_tensors(self).items() if id(t) not in frozen}

    def load_trainable(self, state: State) -> None:
        """Load what `trainable_state_dict` returned: the same names and shapes, nothing less.

        Raises:
            CheckpointError: names are missing or unexpected, or a shape differs.
        """
        own = self.trainable_state_dict()
        check_state(state, own, "the checkpoint")
        copy_tensors(state, own)

    def load_pretrained(self, source: str | Path) -> None:
        """Start from the weights in a file or folder, or at a URL; frozen parts may be absent.

        Raises:
            CheckpointError: names are missing or unexpected, or a shape differs.
        """
        state, own = load_tensors(fetch(source)), self.state_dict(keep_vars=True)
        frozen = [name for name in own if name not in self.trainable_state_dict()]
        check_state(state, own, str(source), allow_missing=frozen)
        copy_tensors(state, own)

    def load_checkpoint(self, url_or_filename: str | Path) -> None:
        """LAVIS's name of `load_pretrained`."""
        self.load_pretrained(url_or_filename)


def distinct_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module`, a tied tensor under its first name only; not copied."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name] for name in first.values()}


def copy_tensors(state: State, own: State) -> None:
    """Copy each tensor of `state` into the tensor of the same name in `own`.

    Raises:
        CheckpointError: a tensor of `own` is quantised.
    """
    for name in state:
        if is_quantized(own[name]):
            raise CheckpointError(
                f"'{name}' is quantised: nothing can be loaded into it any more. Name the "
                "checkpoint in model.pretrained (or `checkpoint=`), which is read before."
            )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(part_like(tensor, own[name]))


def check_state(
    state: State, own: State, origin: str, *, allow_missing: Sequence[str] = ()
) -> None:
    """Compare names and shapes of a state to load (`state`) with the model's (`own`).

    Args:
        allow_missing: names, or prefixes that end in a dot, that `state` may leave out.

    Raises:
        CheckpointError: something is missing, unexpected, or has another shape.
    """
    unexpected = [name for name in state if name not in own]
    missing = [name for name in own if name not in state and not _matches(name, allow_missing)]
    problems = [_name_list("lacks", missing), _name_list("has unknown", unexpected)]
    if any(problems):
        raise CheckpointError(
            f"{origin} does not fit this model: it {' and '.join(filter(None, problems))}."
            f"{_nearest(unexpected, own)}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{origin} does not fit this model: '{name}' has shape {list(tensor.shape)}, "
                f"this model needs {list(own[name].shape)}."
            )


def _matches(name: str, allowed: Sequence[str]) -> bool:
    return any(name == a or (a.endswith(".") and name.startswith(a)) for a in allowed)


def _name_list(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{verb} {', '.join(repr(n) for n in names[:3])}{more}"


def _nearest(unexpected: list[str], own: State) -> str:
    return did_you_mean(unexpected[0], list(own)) if unexpected else ""


def _is_decayed(name: str, parameter: Tensor) -> bool:
    # A temperature is a scalar that is stored with one dimension because FSDP2 rejects zero; the
    # original decays its scalar.
    return not (name.endswith(".bias") or (parameter.ndim == 1 and parameter.numel() > 1))


def backbone_layer_ids(backbone: nn.Module, prefix: str) -> tuple[dict[str, int], int]:
    """`BaseModel.layer_ids` for a backbone with a list of `blocks`; empty when it has none.

    Layer 0 is what comes before the first block (patches, positions), block i is layer i + 1, and
    what follows the last block belongs to it.
    """
    blocks = getattr(backbone, "blocks", None)
    if blocks is None or len(blocks) == 0:
        return {}, 0
    layer_of = {id(p): i + 1 for i, block in enumerate(blocks) for p in block.parameters()}
    ids: dict[str, int] = {}
    seen_block = False
    for name, parameter in backbone.named_parameters():
        inside = layer_of.get(id(parameter))
        seen_block |= inside is not None
        ids[prefix + name] = inside if inside is not None else (len(blocks) if seen_block else 0)
    return ids, len(blocks)
