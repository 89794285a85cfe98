"""Compiled and quantised training with every strategy: what each rank finds.

Run by torchrun, in a folder that holds the language model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "runners")]

import torch  # noqa: E402
from compile_parts import build, losses, make_step  # noqa: E402

from lavislite.common import distributed  # noqa: E402
from lavislite.runners import compile as compiling  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "stage1 ddp": {"kind": "stage1", "strategy": "ddp"},
    "stage1 fsdp": {"kind": "stage1", "strategy": "fsdp"},
    "opt ddp": {"kind": "opt", "strategy": "ddp", "activation_checkpointing": "recompute"},
    "opt fsdp": {"kind": "opt", "strategy": "fsdp", "activation_checkpointing": "recompute"},
    "opt ddp int8": {"kind": "opt", "strategy": "ddp", "quantization": "int8"},
}


def run(case: dict[str, Any], out: Path, *, compiled: bool) -> dict[str, Any]:
    """Losses of three steps, and how many pieces of code the last of them compiled."""
    import torch._dynamo as dynamo

    dynamo.reset()
    case = dict(case)
    model = build(case.pop("kind"), out, case.pop("quantization", None))
    step = make_step(model, compile=compiled, **case)
    first = losses(step, range(2), (12,))  # all of one length
    known = compiling.pieces()
    return {"losses": first + losses(step, range(2, 3), (12,)), "more": compiling.pieces() - known}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    compiling._BACKEND = "aot_eager"  # traces the backward pass as well
    distributed.init_distributed(timeout_minutes=5, device="cpu")
    found = {
        name: [run(case, out, compiled=compiled) for compiled in (False, True)]
        for name, case in CASES.items()
    }
    torch.save(found, out / f"rank{distributed.rank()}.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
