"""What a command imports before it needs it: modules are counted, not seconds."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "PIL", "transformers", "tokenizers", "timm", "torchvision", "yaml",
         "omegaconf", "matplotlib", "tensorboard")  # fmt: skip


def imported(code: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    """Those of `names` that a new process has imported after `code`."""
    tell = f"import sys; print('\\n', *(n for n in {names} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import lavislite") == []


def test_help_imports_nothing_heavy() -> None:
    shown = """
import contextlib
from lavislite.cli import main
for words in (["--help"], ["train", "--help"], ["estimate", "--help"]):
    with contextlib.suppress(SystemExit):
        main(words)
"""
    assert imported(shown) == []


TRAINING = """
import torch
from lavislite.datasets.loading import TrainLoader
from lavislite.models.blip2.stage1 import Blip2Qformer
from lavislite.processors.image import BlipImageTrain
from lavislite.runners.optim import make_optimizer
from lavislite.runners.runner import Runner
from lavislite.common.schema import RunConfig
from lavislite.models.base import BaseModel

class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))

model = Model()
optimizer = make_optimizer(model, RunConfig(), torch.device("cpu"))
for _ in range(2):
    model.weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
"""


def test_a_training_step_imports_no_compiler_and_no_model_library() -> None:
    names = ("torch", "torch._dynamo", "transformers", "timm", "torchvision", "matplotlib")
    assert imported(TRAINING, (*names, "triton", "sympy")) == ["torch"]
