"""What the two processes of the tests in this folder do; every job returns what it found.

Run as a script, with torchrun's variables, it does all of them and writes ``<out>/rank<r>.pt``: one
start of the interpreters serves all tests. The tests call the same jobs in one process to compare.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEIGHBOURS = ("runners", "models", "features")
sys.path[:0] = [str(HERE.parents[1]), *(str(HERE.parent / name) for name in NEIGHBOURS)]

import torch  # noqa: E402

from lavislite.common import distributed  # noqa: E402


def collectives(_: Path) -> dict[str, Any]:
    r = distributed.rank()
    x = (torch.arange(3.0)[:, None] + 10 * r).requires_grad_()
    gathered = distributed.gather_with_grad(x)
    (gathered * torch.arange(6.0)[:, None] * (r + 1)).sum().backward()
    gather_grad, x.grad = x.grad, None
    wanted = torch.tensor([[5, 0, 0], [1, 4, 2]][r])
    rows = distributed.exchange_rows(x, wanted)
    (rows * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    try:
        distributed.gather_no_grad(torch.zeros(2 + r))
        ragged = ""
    except Exception as error:
        ragged = f"{type(error).__name__}: {error}"
    return {
        "gathered": gathered.detach(),
        "gather_grad": gather_grad,
        "rows": rows.detach(),
        "rows_grad": x.grad,
        "ragged": ragged,
        "sum": distributed.all_reduce_sum(torch.tensor([1.0 + r])),
        "max": distributed.max_int(r + 5),
        "objects": distributed.all_gather_objects({"rank": r}),
        "broadcast": distributed.broadcast_object(f"from {r}"),
        "shared": torch.rand(3, generator=distributed.shared_generator()),
    }


def training(out: Path) -> dict[str, Any]:
    """Six steps of two micro-batches; a global batch of 8, whatever the number of processes."""
    from runner_parts import Model, make_runner

    runner = make_runner(
        out / "training",
        model=Model(dropout=0),
        batch_size_train=8 // distributed.world_size(),
        accum_grad_iters=2,
        max_epoch=3,
        clip_grad_norm=0.5,
        valid_splits=["val"],
    )
    metrics = runner.train()
    return {"weights": runner.model.trainable_state_dict(), "metrics": metrics}


def resumption(out: Path) -> dict[str, Any]:
    """With dropout, an uninterrupted run and one that goes on after two of six steps."""
    from runner_parts import Model, make_runner

    def run(name: str, **options: Any) -> Any:
        runner = make_runner(
            out / name, model=Model(dropout=0.5), batch_size_train=2, max_steps=6, **options
        )
        runner.train()
        return runner.model.trainable_state_dict()

    whole = run("whole", save_every_steps=2)
    resumed = run("resumed", resume=str(out / "whole/checkpoints/step_2"))
    return {"whole": whole, "resumed": resumed}


def not_a_number(out: Path) -> dict[str, Any]:
    """The second process meets a picture full of NaN in the first batch."""
    from runner_parts import Data, make_runner

    from lavislite.common.errors import TrainingError

    data = Data(8)
    runner = make_runner(out / "nan", train=data, batch_size_train=4)
    second = runner.data._mixture.batch(0)[1][4:]
    data.x[second[0]] = float("nan")
    try:
        runner.train()
    except TrainingError as error:
        return {"error": str(error), "bad": f"toy#{second[0]}"}
    return {"error": ""}


def left_out(out: Path) -> dict[str, Any]:
    """The second process alone has a loss that is not finite, and a gradient that is."""
    import json

    from runner_parts import Model, Task, make_runner

    class Spoilt(Task):
        steps = 0

        def train_step(self, model: torch.nn.Module, samples: dict[str, Any]) -> dict[str, Any]:
            self.steps += 1
            bad = self.steps == 2 and distributed.rank() == 1
            self.records = samples["index"].tolist() if bad else getattr(self, "records", [])
            losses = model(samples)
            return {**losses, "loss": losses["loss"] + (float("inf") if bad else 0.0)}

    task, model = Spoilt(), Model(dropout=0)
    runner = make_runner(out / "left_out", model=model, task=task, skip_nonfinite=1, max_steps=3)
    runner.train()
    lines = (out / "left_out/log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        "weights": runner.model.trainable_state_dict(),
        "adam_steps": [s["step"] for s in runner.step.optimizer.state.values()],
        "skips": [(r["step"], r["records"]) for r in rows if r["event"] == "skip"],
        "tflops": [r.get("tflops", 0.0) for r in rows if r["event"] == "train"],
        "records": [f"toy#{i}" for i in task.records],
    }


def full_disk(out: Path) -> dict[str, Any]:
    """Only the main process writes; when it cannot, all must stop."""
    from runner_parts import make_runner

    from lavislite.common.errors import TrainingError
    from lavislite.runners import checkpoint

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    kept, checkpoint.save_weights = checkpoint.save_weights, full
    try:
        make_runner(out / "disk", batch_size_train=2, max_steps=1).train()
    except TrainingError as error:
        return {"error": str(error)}
    finally:
        checkpoint.save_weights = kept
    return {"error": ""}


class Patches(torch.nn.Module):
    """A frozen vision tower that needs no library: a strided convolution."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 64, 14, 14)
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).flatten(2).mT


def stage1(_: Path) -> dict[str, Any]:
    """Losses and gradients of a step of BLIP-2 stage 1, without and with image ids."""
    from reference import FOLDER, reference_batch, tiny_config

    from lavislite.models.blip2.stage1 import Blip2Qformer
    from lavislite.models.blip2.text import build_tokenizer
    from lavislite.runners.strategy import make_strategy

    found: dict[str, Any] = {}
    for tag in ("eva_frozen", "eva_frozen_image_id"):
        distributed.seed_everything(0)
        tokenizer = build_tokenizer(str(FOLDER))
        model = Blip2Qformer(tiny_config(), vision=Patches(), tokenizer=tokenizer).train()
        whole = reference_batch(tag)
        n = len(whole["text_input"]) // distributed.world_size()
        own = slice(distributed.rank() * n, (distributed.rank() + 1) * n)
        batch = {key: value[own] for key, value in whole.items()}
        strategy = make_strategy(model, torch.device("cpu"))
        losses = strategy.model(batch)
        losses["loss"].backward()
        means = {
            name: (distributed.all_reduce_sum(value) / distributed.world_size()).item()
            for name, value in losses.items()
        }
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found[tag] = {"losses": means, "grads": {name: p.grad for name, p in trained.items()}}
    return found


def stage2(out: Path, kinds: tuple[str, ...] = ("opt", "t5")) -> dict[str, Any]:
    """Training and evaluation of BLIP-2 stage 2, with both kinds of language model."""
    import stage2_job

    found = {}
    for kind in kinds:
        distributed.seed_everything(0)  # the tower's random weights
        found[kind] = stage2_job.run(kind, Patches, out)
    return found


def statistics(out: Path) -> dict[str, Any]:
    """Three steps with a batch norm that trains; the processes see different halves."""
    import warnings

    from runner_parts import Model, make_runner

    model = Model(dropout=0)
    model.dropout = torch.nn.BatchNorm1d(8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_runner(out / "norm", model=model, batch_size_train=4, max_steps=3).train()
    return {
        "mean": model.dropout.running_mean,
        "var": model.dropout.running_var,
        "warnings": [str(warning.message) for warning in caught],
    }


def feature_cache(out: Path) -> dict[str, Any]:
    """Features of ten pictures, of which one cannot be read; then again, and one has changed."""
    import feature_parts as parts

    from lavislite.common.errors import UserError

    folder = out / "features"
    if distributed.is_main():
        parts.draw(folder / "images", 10)
        (folder / "images/3.png").write_bytes(b"no picture")
    distributed.barrier()

    def run(**options: Any) -> tuple[Any, int]:
        split = parts.captions(folder, 10, name=f"mine{distributed.rank()}", max_bad_fraction=0.5)
        model = parts.use(split, folder=str(folder / "cache"), **options)
        return split, parts.computed(model)

    try:
        run(max_gb=0)
        refused = ""
    except UserError as error:
        refused = str(error)
    split, first = run()
    bad = split.bad_records
    if distributed.is_main():
        parts.repaint(folder / "images/5.png", 50, size=13)
    distributed.barrier()
    again, second = run()
    good = [i for i in range(20) if i // 2 != 3]
    return {
        "refused": refused,
        "computed": [first, second],
        "bad": bad,
        "missing": [i for i in range(20) if again[i] is None],
        "features": again.collate([again[i] for i in good])["image_features"],
        "marks": len(list((folder / "cache").glob(".*"))),
    }


JOBS = (
    collectives,
    training,
    resumption,
    not_a_number,
    left_out,
    full_disk,
    stage1,
    stage2,
    statistics,
    feature_cache,
)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_distributed(timeout_minutes=3, device="cpu")
    distributed.seed_everything(0)
    found = {job.__name__: job(out) for job in JOBS}
    torch.save(found, out / f"rank{distributed.rank()}.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
