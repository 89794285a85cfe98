"""One of two real processes: what a step computes there, and what FSDP leaves it of the weights.

RANK=0 WORLD_SIZE=2 ... python two_processes.py <file for the result>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import torch  # noqa: E402
from estimate_parts import real, recipe  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lavislite.common import distributed  # noqa: E402
from lavislite.runners.sharding import Sharded  # noqa: E402


def main(out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_distributed(timeout_minutes=5, device="cpu")
    model, task, samples = real(recipe(), 8)
    with FlopCounterMode(display=False) as counter:
        task.train_step(model, samples)["loss"].backward()
    model.zero_grad(set_to_none=True)
    Sharded(model, torch.device("cpu"))
    local = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in [*local, *model.buffers()])
    found = {"flops": counter.get_total_flops(), "weights": weights}
    out.write_text(json.dumps(found), encoding="utf-8")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
