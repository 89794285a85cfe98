"""The same training with every strategy: what each rank prints of losses, weights and rows.

Run by torchrun; in one process the test calls `run` itself. The global batch is always the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "runners")]
sys.path[:0] = [str(HERE.parent / "models")]

import torch  # noqa: E402

from lavislite.common import distributed  # noqa: E402

KINDS = ("stage1", "stage1_trained_tower", "stage1_without_itg", "opt", "t5")
STEPS, GLOBAL_BATCH, ACCUMULATE = 3, 4, 2
WORDS = [
    "a",
    "red",
    "cat",
    "on",
    "the",
    "small",
    "table",
    "two",
    "dogs",
    "an",
    "old",
    "man",
    "eats",
    "near",
    "happy",
]


def build(kind: str, folder: Path) -> Any:
    from reference import FOLDER, tiny_config, tiny_eva

    from lavislite.models.blip2.stage1 import Blip2Qformer
    from lavislite.models.blip2.text import build_tokenizer
    from lavislite.models.language.base import build_language
    from tests.models.reference_stage2 import KINDS as STAGE2
    from tests.models.reference_stage2 import stage2_config

    distributed.seed_everything(5)
    vision = tiny_eva(frozen=kind != "stage1_trained_tower")
    if kind.startswith("stage1"):
        wanted = {"objectives": ["itc", "itm"]} if kind == "stage1_without_itg" else {}
        tokenizer = build_tokenizer(str(FOLDER))
        return Blip2Qformer(tiny_config(**wanted), vision=vision, tokenizer=tokenizer)
    cfg = stage2_config(kind, folder / f"rank{distributed.rank()}", prompt="a photo of")
    return STAGE2[kind][0](cfg, vision=vision, language=build_language(cfg.language))


def batches(step: int) -> list[dict[str, Any]]:
    """This process's share of a step's micro-batches."""
    generator = torch.Generator().manual_seed(step)
    size = GLOBAL_BATCH // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    found = []
    for part in range(ACCUMULATE):
        images = torch.randn(GLOBAL_BATCH, 3, 56, 56, generator=generator)
        texts = [" ".join(WORDS[(step + part + 3 * i) % 5 :][: 2 + i]) for i in range(GLOBAL_BATCH)]
        index = torch.arange(GLOBAL_BATCH)
        found.append({"image": images[own], "text_input": texts[own], "index": index[own]})
    return found


def run(
    kind: str, folder: Path, precision: str = "fp32", device: str = "cpu", **options: Any
) -> dict[str, Any]:
    """Losses of each step, weights and optimizer state at the end, and what an evaluation sees."""
    from runner_parts import Task, run_config

    from lavislite.runners.optim import make_autocast
    from lavislite.runners.step import TrainStep

    model, place = build(kind, folder).train(), torch.device(device)
    distributed.seed_everything(7, rank=0)  # the toy models have no dropout
    cfg = run_config(clip_grad_norm=1.0, accum_grad_iters=ACCUMULATE, **options)
    step = TrainStep(
        cfg,
        task=Task(),
        model=model,
        device=place,
        precision=precision,
        autocast=make_autocast(precision, place),
        record_id=str,
    )
    losses, seen = [], []
    for number in range(STEPS):
        seen.append(_look(step, model, kind))
        step(number, 1e-3, batches(number))
        losses.append(step.read())
    return {
        "losses": losses,
        "seen": seen,
        "weights": step.strategy.trainable_state(),
        "optimizer": step.strategy.optimizer_state(step.optimizer),
        "identity": {part: name.split("@")[-1] for part, name in model.identity().items()},
        "held": sum(_held(p) for p in model.parameters()),
    }


def _look(step: Any, model: Any, kind: str) -> torch.Tensor | None:
    """The main process alone calls parts of the model: an evaluation is not a step."""
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(9))
    model.eval()
    with step.strategy.whole_model(), torch.no_grad():
        found = None
        if distributed.is_main():
            rows, _ = model.read_image(model.encode_image(images))
            found = rows if kind.startswith("stage1") else model.image_prefix(images)[0]
            if not kind.startswith("stage1"):
                model.generate({"image": images}, num_beams=2, max_new_tokens=4)
    model.train()
    return found


def _held(parameter: torch.Tensor) -> int:
    """Numbers that this process keeps of a parameter between steps."""
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.numel()


def cases(kinds: tuple[str, ...] = KINDS) -> dict[str, dict[str, Any]]:
    """``kind strategy ...`` -> what differs from the defaults."""
    found = {f"{k} {s}": {"kind": k, "strategy": s} for k in kinds for s in ("ddp", "fsdp")}
    modes = ("recompute", "offload")
    for i, kind in enumerate(kinds):
        strategy, mode = ("fsdp", "ddp")[i % 2], modes[i // 2 % 2]
        found[f"{kind} {strategy} {mode}"] = {
            **{"kind": kind, "strategy": strategy, "activation_checkpointing": mode}
        }
    return found | {"opt fsdp fp16": {"kind": "opt", "strategy": "fsdp", "precision": "fp16"}}


def trained(folder: Path, **options: Any) -> Any:
    """The toy model after six steps with a global batch of 4, or after those that were left."""
    from runner_parts import Model, make_runner

    size = GLOBAL_BATCH // distributed.world_size()
    options = {"batch_size_train": size, "max_steps": 6, "save_every_steps": 2, **options}
    runner = make_runner(folder, model=Model(dropout=0), **options)
    runner.train()
    return runner.step.strategy.trainable_state()


def relay(out: Path) -> dict[str, Any]:
    """DDP begins, FSDP goes on from its checkpoint in another folder."""
    whole = trained(out / "ddp", strategy="ddp")
    step_2 = str(out / "ddp/checkpoints/step_2")
    return {"whole": whole, "continued": trained(out / "fsdp", strategy="fsdp", resume=step_2)}


def main(out: Path, *kinds: str) -> None:
    torch.set_num_threads(1)
    distributed.init_distributed(timeout_minutes=3, device="cpu")
    found = {name: run(folder=out, **case) for name, case in cases(kinds or KINDS).items()}
    found["relay"] = relay(out)
    torch.save(found, out / f"rank{distributed.rank()}.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
