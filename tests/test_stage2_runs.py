"""Stage 2 through the command line: what is refused at once, and runs that go on or are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lavislite.build
from lavislite import load_model
from lavislite.cli import main
from lavislite.common.config import load_config
from lavislite.common.errors import CheckpointError
from lavislite.common.trained import last_run
from lavislite.models.blip2.weights import checkpoint_in, load_pretrained
from tests.playground_parts import PROJECTS, small

PROJECT = PROJECTS / "blip2" / "pretrain_stage2.yaml"
STAGE1, STAGE2, STAGE2_T5 = (
    f"projects/blip2/pretrain_stage{name}.yaml" for name in ("1", "2", "2_t5")
)

pytestmark = pytest.mark.usefixtures("trained_playground")


def train(folder: Path, *options: str) -> int:
    quick = ["run.report=false", "run.tensorboard=false", "run.test_splits=[]", "run.monitor=null"]
    shrunk = [*small(load_config(PROJECT), folder), *quick, "run.valid_splits=[]"]
    return main(["train", "--cfg-path", str(PROJECT), "--options", *shrunk, *options])


def evil(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (print, ("this ran",))

    torch.save({"model": {"query_tokens": torch.ones(1, 8, 128)}, "x": Evil()}, path)


REFUSED = {
    "model.language.name=playground_op": "Did you mean 'playground_opt'",
    "model.language.name=org/none": "not in the Hugging Face cache, and HF_HUB_OFFLINE is set",
    "model.language.name={tmp}/none": "there is no folder",
    "model.language.name={tmp}": "holds no config.json",
    "model.num_query_tokens=4": "has 8 query tokens of width 128, this model has 4 of width 128",
    "model.qformer.hidden_size=64": "has 8 query tokens of width 128, this model has 8 of width 64",
    "model.pretrained={tmp}/none.pth": "No checkpoint",
    "model.pretrained={tmp}/damaged.pth": "damaged.pth: not a readable PyTorch checkpoint",
    "model.pretrained={tmp}/damaged.safetensors": "not a readable safetensors file",
    "model.pretrained={tmp}/evil.pth": "could run foreign code, so it is refused",
    "model.pretrained=last_run:projects/blip2/pretrain_stage3.yaml": "Did you mean 'pretrain_stage",
    "run.generation.num_captions=3": "3 captions need as many beams",
    "run.generation.max_new_token=3": "Did you mean 'max_new_tokens'",
}


@pytest.mark.parametrize(("option", "message"), REFUSED.items())
def test_what_cannot_be_is_said_before_any_data_is_made(
    option: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "damaged.safetensors").write_bytes(b"no more")
    evil(tmp_path / "evil.pth")
    monkeypatch.setattr(lavislite.build, "build_data", None)
    assert train(tmp_path / "out", option.format(tmp=tmp_path)) == 2
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 1
    assert message in shown.err
    assert "this ran" not in shown.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.language.name=playground_t5"], "Set model.arch=blip2_t5, or blip2_llm"),
        (["model.pretrained={t5}"], "was trained with language 'playground_t5@"),
    ],
)
def test_what_only_the_model_can_tell(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t5 = last_run(STAGE2_T5)
    assert train(tmp_path / "out", *(option.format(t5=t5) for option in options)) == 2
    assert message in capsys.readouterr().err


def test_stage_one_does_not_start_from_stage_two() -> None:
    model = load_model("blip2", checkpoint=last_run(STAGE1))
    with pytest.raises(CheckpointError, match="is a stage-2 checkpoint .* name a stage-2 model"):
        load_pretrained(model, last_run(STAGE2))


def test_a_run_goes_on_to_the_bit_and_is_evaluated_and_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert train(tmp_path / "whole", "run.max_steps=4") == 0
    stop = ["run.max_steps=4", "run.save_every_steps=2", "run.keep_last=3"]
    assert train(tmp_path / "parts", *stop) == 0
    run = checkpoint_in(tmp_path / "parts/pretrain_stage2/latest").parents[1]
    steps = run / "checkpoints"
    (steps / "last").unlink()
    (steps / "last").symlink_to("step_2")
    for file in (steps / "step_4").iterdir():
        file.unlink()
    (steps / "step_4").rmdir()
    assert train(tmp_path / "parts", *stop, "run.resume=auto") == 0
    assert "Continuing after step 2" in caplog.text
    whole, parts = (
        load_file(checkpoint_in(tmp_path / name / "pretrain_stage2/latest") / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    model = load_model("blip2_opt", checkpoint=run)
    assert torch.equal(model.llm_proj.weight, whole["llm_proj.weight"])
    few = ["run.valid_splits=[val]", "run.generation.max_new_tokens=9"]
    assert main(["evaluate", "--checkpoint", str(run), "--options", *few]) == 0
    assert "CIDEr" in caplog.text
