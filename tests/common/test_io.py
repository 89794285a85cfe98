"""Files appear whole, checkpoints are read safely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lavislite.common import io, tensors
from lavislite.common.errors import CheckpointError, DataError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.txt"
    io.atomic_write_text(file, "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        io.atomic_write(file, half)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    def write(text: str) -> None:
        io.atomic_write(
            tmp_path / "step", lambda part: (part.mkdir(), (part / text).write_text(text))[0]
        )

    write("a")
    write("b")
    assert [file.name for file in (tmp_path / "step").iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]


def test_what_a_kill_left_is_finished_or_removed(tmp_path: Path) -> None:
    for name in (".half.abcd_123/half", ".step.abcd_123/step", ".step.abcd_123/old"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".going.abcd_123/going", ".other.abcd_123/something", ".git/objects"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".step.abcd_123/step/new").touch()  # killed between the old and the new
    io.clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".git", ".other.abcd_123", "step"]
    assert (tmp_path / "step/new").exists()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step/old").mkdir(parents=True)
    real = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "step" and not (self / "old").exists():
            raise OSError("Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        io.atomic_write(tmp_path / "step", lambda part: part.mkdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["step", "old"]


def test_bad_json_is_located(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(DataError, match=r"a.json.*line 2, column 7"):
        io.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["pt", "nested", "legacy", "safetensors", "folder", "shards"])
def test_tensors_come_from_every_usual_file(tmp_path: Path, kind: str) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "pt":
        torch.save(state, path)
    elif kind == "nested":
        torch.save({"model": state, "epoch": 3}, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "folder":
        path = tmp_path
        save_file(state, tmp_path / "model.safetensors")
    else:
        path = tmp_path
        for name in state:
            save_file({name: state[name]}, tmp_path / f"{name}.safetensors")
        index = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
        (tmp_path / "model.safetensors.index.json").write_text(index)
    loaded = tensors.load_tensors(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this ran",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth.*Python objects"):
        tensors.load_tensors(tmp_path / "evil.pth")
    assert "this ran" not in capsys.readouterr().out


def test_the_class_in_a_pickle_is_named_and_a_way_out_shown(tmp_path: Path) -> None:
    from argparse import Namespace

    from omegaconf import OmegaConf

    state = {"a": torch.ones(1)}
    for config, name in (
        (OmegaConf.create({"lr": 1}), "omegaconf.dictconfig.DictConfig"),
        (Namespace(lr=1), "argparse.Namespace"),
    ):
        torch.save({"model": state, "config": config}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=rf"w.pth.*\({name}\).*save its tensors alone"):
            tensors.load_tensors(tmp_path / "w.pth")


def test_plain_values_beside_the_weights_can_be_read(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "config": {"arch": "x"}}, tmp_path / "w.pth")
    assert tensors.torch_content(tmp_path / "w.pth")["config"] == {"arch": "x"}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "whole")
    if name.endswith(".safetensors"):
        save_file({"a": torch.ones(100)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in (0, 7, 300, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            tensors.load_tensors(tmp_path / name)


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("model: {}")
    with pytest.raises(CheckpointError, match=r"w\.pth: not a PyTorch checkpoint"):
        tensors.load_tensors(tmp_path / "w.pth")
