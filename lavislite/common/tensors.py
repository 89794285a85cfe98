"""Reading weights from files that may come from anywhere: no code of theirs runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavislite.common.errors import CheckpointError
from lavislite.common.io import read_json, require_path

if TYPE_CHECKING:
    from torch import Tensor


def load_tensors(path: str | Path) -> Mapping[str, Tensor]:
    """Name -> tensor from ``.safetensors``, a PyTorch file, or a folder in the hub's layout.

    PyTorch files are read without running code (``weights_only``) and mapped, not copied. A
    training checkpoint that keeps its weights under ``model`` or ``state_dict`` gives those.

    Raises:
        UserError: no such file.
        CheckpointError: damaged, or holds something other than tensors.
    """
    found = require_path(path, "checkpoint")
    if found.is_dir():
        return _load_folder(found)
    if found.name.endswith(".index.json"):
        return _load_shards(found)
    if found.suffix == ".safetensors":
        return _load_safetensors(found)
    return _load_torch(found)


def _load_folder(folder: Path) -> Mapping[str, Tensor]:
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / name).exists():
            return _load_shards(folder / name)
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt"):
        if (folder / name).exists():
            return load_tensors(folder / name)
    content = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"{folder}: expected model.safetensors or pytorch_model.bin, saw {content}"
    )


def _load_shards(index: Path) -> Mapping[str, Tensor]:
    shards = sorted(set(read_json(index)["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for shard in shards:
        state.update(load_tensors(index.parent / shard))
    return state


def _load_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def _load_torch(path: Path) -> Mapping[str, Tensor]:
    return _weights_of(torch_content(path), path)


def torch_content(path: Path) -> Any:
    """What a PyTorch file holds, read without running code and with its tensors mapped.

    Raises:
        CheckpointError: it is damaged, or holds something other than tensors and plain values.
    """
    import pickle
    import warnings
    import zipfile

    import torch

    with path.open("rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # a zip archive, or a pickle of old
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, nor named *.safetensors")
    try:
        # Only the zip format (PyTorch >= 1.6) can be mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles: what follows says more
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split(". ")[0]  # the rest guesses at what may have happened
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint: {first}") from error
    return content


def _refusal(path: Path, reason: str) -> str:
    """Why a pickle is not opened, with the class that it wants to build if it names one."""
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    if found is None:
        return (
            f"{path}: holds Python objects besides tensors, or is damaged. Loading those could run "
            "foreign code, so it is refused."
        )
    return (
        f"{path}: holds Python objects besides tensors ({found[1]}). Loading those could run "
        "foreign code, so it is refused. If you trust the file, save its tensors alone where it "
        "comes from: torch.save({'model': checkpoint['model']}, 'weights.pth')."
    )


def _weights_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    import torch

    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected names with tensors, saw {type(content).__name__}")
    odd = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: '{odd[0]}' is not a tensor ({len(odd)} such entries)")
    return content
