"""``lavislite convert``: every format into every other, and back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavislite import load_model, load_model_and_preprocess
from lavislite.cli import main
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.common.tensors import load_tensors
from lavislite.convert import convert, open_source
from lavislite.models.base import distinct_tensors
from lavislite.models.blip2.native import native_project, save_native

from models.exporting import build, images  # isort: skip

KINDS = ("stage1", "opt", "t5", "llama")


def same(ours: Any, theirs: Any) -> bool:
    mine, other = distinct_tensors(ours), distinct_tensors(theirs)
    return mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)


def answers(model: Any) -> Any:
    if hasattr(model, "language"):
        return model.generate({"image": images(), "prompt": "a photo of"}, num_beams=3)
    with torch.no_grad():
        return model.project_image(model.read_image(model.encode_image(images()))[0]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_around_all_formats_to_the_bit(kind: str, tmp_path: Path) -> None:
    """ours -> LAVIS -> ours -> Hugging Face -> ours; OPT and T5 get a row for <image> there."""
    said: list[str] = []
    model = build(kind, tmp_path)
    save_native(model, tmp_path / "0")
    assert same(open_source(tmp_path / "0").model, model)
    convert(tmp_path / "0", tmp_path / "1.pth", "lavis", say=said.append)
    convert(tmp_path / "1.pth", tmp_path / "2", "lavislite", say=said.append)
    again = open_source(tmp_path / "2").model
    assert same(again, model)
    assert answers(again) == answers(model)
    convert(tmp_path / "2", tmp_path / "3", "hf", say=said.append)
    convert(tmp_path / "3", tmp_path / "4", "lavislite", say=said.append)
    last = open_source(tmp_path / "4").model
    assert answers(last) == answers(model)
    if kind in ("stage1", "llama"):
        assert same(last, model)
    convert(tmp_path / "4", tmp_path / "5", "hf", say=said.append)
    files = [load_tensors(tmp_path / name) for name in ("3", "5")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert [line.split()[0] for line in said] == ["read", "wrote", "checked:"] * 5
    assert "logits differ by at most" in said[8]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of ours."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    return save_native(build("llama", folder), folder / "model")


def test_the_command_says_what_it_did(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = str(tmp_path / "hf")
    assert main(["convert", str(llama), dest, "--to", "hf", "--dtype", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"read {llama}: blip2_llm, ")
    assert lines[1].startswith(f"wrote {dest}: ")
    assert lines[2].startswith("checked: loaded by transformers, its logits differ by at most ")
    assert main(["convert", str(llama), dest, "--to", "hf"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(llama), str(tmp_path / "b"), "--to", "hff"]) == 2
    assert "--to: 'hff' is unknown. Did you mean 'hf'?" in capsys.readouterr().err


def test_a_folder_can_be_moved(llama: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    llama.rename(moved)
    try:
        name = native_project(moved)["model"]["language"]["name"]
        assert name == f"causal:{moved}/language"
        assert open_source(moved).model.language.kind == "causal"
    finally:
        moved.rename(llama)


def test_load_model_takes_either_folder(llama: Path, tmp_path: Path) -> None:
    theirs = convert(llama, tmp_path / "hf", "hf", verify=False, say=str)
    expected = open_source(llama).model
    for folder in (llama, theirs):
        assert same(load_model("blip2_llm", checkpoint=folder), expected)
    _, vis, txt = load_model_and_preprocess("blip2_llm", checkpoint=theirs)
    assert vis["eval"].image_size == expected.cfg.vision.image_size
    assert txt["eval"]("A CAT") == "a cat"


def test_half_precision_and_preprocessing_are_kept(llama: Path, tmp_path: Path) -> None:
    preprocess = {"vis_processor": {"eval": {"name": "blip_image_eval", "mean": [0.5, 0.5, 0.5]}}}
    model = open_source(llama).model
    save_native(model, tmp_path / "half", dtype=torch.bfloat16, preprocess=preprocess)
    assert load_tensors(tmp_path / "half")["llm_proj.weight"].dtype == torch.bfloat16
    source = open_source(tmp_path / "half")
    assert source.preprocess == preprocess
    convert(tmp_path / "half", tmp_path / "hf", "hf", say=str)
    images = open_source(tmp_path / "hf").preprocess["vis_processor"]["eval"]
    assert images["mean"] == [0.5, 0.5, 0.5]


def test_options_change_what_is_read(llama: Path) -> None:
    model = open_source(llama, options=["model.prompt=a picture of"]).model
    assert model.cfg.prompt == "a picture of"


def lavis_file(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def test_a_file_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"opt_proj.weight": torch.zeros(2, 2)}
    path = lavis_file(tmp_path / "c.pth", {"model": state})
    with pytest.raises(UserError, match=r"looks like a 'blip2_opt'.*--arch"):
        convert(path, tmp_path / "out", "hf")
    with pytest.raises(ConfigError, match=r"no model_type 'pretrian'"):
        convert(path, tmp_path / "out", "hf", arch="blip2", model_type="pretrian")
    with pytest.raises(UserError, match="No checkpoint|No file"):
        convert(tmp_path / "absent.pth", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_damaged_and_dangerous_files_say_so(tmp_path: Path) -> None:
    whole = lavis_file(tmp_path / "whole.pth", {"model": {"temp": torch.zeros(1000)}})
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        convert(cut, tmp_path / "out", "hf", arch="blip2", model_type="pretrain")


def test_lavis_is_one_file(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one file; name it \*\.pth"):
        convert(llama, tmp_path / "folder", "lavis", say=str)


def test_a_difference_is_an_error(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "lavislite.models.blip2.hf_check.greatest_difference", lambda *_: float("nan")
    )
    with pytest.raises(CheckpointError, match="its logits differ by nan"):
        convert(llama, tmp_path / "hf", "hf", say=str)
    monkeypatch.setattr("lavislite.convert.LARGE", 1)
    said: list[str] = []
    convert(llama, tmp_path / "hf2", "hf", say=said.append)
    assert said[-1].startswith("not checked: more than 1 parameters")
