"""Parameters, memory by strategy, batches that fit, hours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from estimate_parts import recipe, simulator, stage2

from lavislite.common import distributed
from lavislite.common.config import load_config
from lavislite.common.errors import ConfigError, UserError
from lavislite.estimate import estimate
from lavislite.estimate.blueprint import build_blueprint
from lavislite.estimate.gpus import GPUS, Gpu, find_gpu
from lavislite.estimate.length import total_steps
from lavislite.estimate.memory import GIB, memory, traffic
from lavislite.estimate.processes import as_one_of
from lavislite.estimate.report import lines
from lavislite.estimate.sizes import sizes_of
from lavislite.estimate.stand_ins import known_config, stand_in_language
from lavislite.models.language.base import LanguageConfig

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "projects/blip2/paper"
FULLSIZE = ROOT / "tests/data/fullsize"
SMALL = Gpu("small", 1.0, 2.0)


# ---- parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("facebook/opt-2.7b", 2_651_596_800),
        ("facebook/opt-6.7b", 6_658_473_984),
        ("google/flan-t5-xl", 2_849_757_184),
        ("google/flan-t5-xxl", 11_135_332_352),
    ],
)
def test_well_known_language_models_have_their_published_size(name: str, parameters: int) -> None:
    notes: list[str] = []
    with torch.device("meta"):
        model = stand_in_language(LanguageConfig(name=name, precision="bf16"), notes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert notes
    assert known_config("somebody/else") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "reference"),
    [
        ("pretrain_stage1_vitg", "blip2_qformer_eva_clip_g_224"),
        ("pretrain_stage1_vitL", "blip2_qformer_clip_L_224"),
        ("pretrain_stage2_flant5xl", "blip2_flant5xl"),
        ("pretrain_stage2_opt2.7b", "blip2_opt2.7b"),
        ("pretrain_stage2_opt6.7b", "blip2_opt6.7b"),
        ("retrieval_finetune_vitg", "blip2_qformer_eva_clip_g_364_unfrozen"),
    ],
)
def test_the_papers_models_have_the_originals_size(project: str, reference: str) -> None:
    with gzip.open(FULLSIZE / f"{reference}.json.gz", "rt") as file:
        known = json.load(file)
    model = build_blueprint(load_config(PAPER / f"{project}.yaml"), "bf16", [])
    counts = sizes_of(model).parameters.values()
    trained = sum(t for _, t in counts)
    assert trained == known["num_params_trainable"]
    assert sum(n for n, _ in counts) - trained == known["num_params_frozen"]


# ---- memory


def test_fsdp_divides_what_ddp_repeats(tmp_path: Path) -> None:
    simulated = simulator(stage2(tmp_path, "opt"))
    sizes, step = sizes_of(simulated.model), simulated(4)
    ddp = memory("ddp", sizes, step, world=4)
    few, many = (memory("fsdp", sizes, step, world=n) for n in (4, 1000))
    assert ddp.weights > few.weights > many.weights >= sizes.frozen_rest
    assert few.optimizer == ddp.optimizer // 4
    assert few.gathered > 0 == ddp.gathered
    assert sizes.frozen_layers > sizes.backward_layers > 0  # not those of the vision tower
    assert traffic("fsdp", sizes, world=4) > traffic("ddp", sizes, world=4) > 0
    assert traffic("single", sizes, world=1) == 0


def test_gradients_of_a_divided_tower_are_divided() -> None:
    cfg = recipe({"vision": {"name": "tiny", "image_size": 32, "freeze": False}})
    sizes = sizes_of(simulator(cfg).model)
    assert 0 < sizes.trained_layers < sizes.trained
    step = simulator(cfg)(4)
    assert step.peak_sharded <= step.peak
    divided = memory("fsdp", sizes, step, world=8)
    assert divided.gradients == sizes.trained_rest + sizes.trained_layers // 8


def test_the_largest_batch_fits_and_a_larger_one_does_not() -> None:
    cfg = recipe()
    found = estimate(cfg, gpus=2, gpu=SMALL)
    largest = found.way("ddp", "none").largest
    simulated = simulator(cfg, gpu=True)
    simulated.precision = found.precision
    for batch, fits in ((int(largest * 0.95), True), (int(largest * 1.05), False)):
        needed = memory("ddp", found.sizes, simulated(batch, 2), world=2)
        assert (needed.total <= SMALL.memory_gib * GIB) is fits


def test_nothing_fits_where_there_is_no_room() -> None:
    found = estimate(recipe(), gpus=1, gpu=Gpu("none", 1.0, 0.1))
    assert {way.strategy for way in found.ways} == {"single"}
    assert not any(way.fits or way.largest for way in found.ways)


# ---- hours


def test_hours_are_operations_by_speed() -> None:
    found = estimate(recipe(), gpus=4, gpu=SMALL, mfu=0.5)
    way = found.way("ddp", "none")
    assert way.flops == 4 * found.step.all_flops
    assert way.hours == pytest.approx(100 * found.step.all_flops / (0.5 * 1e12) / 3600)
    twice = estimate(recipe(accum_grad_iters=2), gpus=4, gpu=SMALL, mfu=0.5)
    assert twice.way("ddp", "none").seconds == pytest.approx(2 * way.seconds)
    assert twice.whole_batch == 64


def test_the_number_of_steps() -> None:
    notes: list[str] = []
    assert total_steps(recipe(), 4, None, notes) == 100
    assert total_steps(recipe(max_steps=None, max_epoch=3), 4, 1000, notes) == 3 * (1000 // 32)
    assert total_steps(recipe(max_steps=None, steps_per_epoch=7, max_epoch=3), 4, 1, notes) == 21
    assert not notes
    usual = total_steps(recipe(max_steps=None, max_epoch=2), 4, None, notes)
    assert usual == 2 * (566_747 // 32)
    assert "566,747" in notes[0]
    cfg = recipe(max_steps=None)
    cfg.datasets["mine"] = cfg.datasets.pop("coco_caption")
    cfg.datasets["mine"].builder = "image_caption"
    assert total_steps(cfg, 4, None, notes) is None
    assert "mine" in notes[-1]


# ---- errors, and what stays as it was


def test_what_cannot_be_estimated(tmp_path: Path) -> None:
    def fails(cfg: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            estimate(cfg, gpus=1, gpu=SMALL)

    fails(recipe(evaluate=True), "trains nothing")
    fails(recipe(precision="fp8"), "fp8")
    fails(recipe({"tokenizer": str(tmp_path)}), "vocab.txt")
    quantized = stage2(tmp_path, "opt")
    quantized.model.language.quantization = "8bit"
    fails(quantized, "quantized")
    fails(stage2_of("facebook/opt-2.7b", {"hiden_size": 3}), "hidden_size")
    with pytest.raises(ConfigError, match="a100-40g"):
        find_gpu("a100-40")


def stage2_of(name: str, options: dict[str, Any]) -> Any:
    return recipe({"arch": "blip2_opt", "language": {"name": name, "options": options}})


def test_every_gpu_has_a_known_speed() -> None:
    assert all(find_gpu(name).tflops > 50 for name in GPUS)
    assert find_gpu("A100-40g", 20.0).memory_gib == 20.0
    assert find_gpu("t4").precision == "fp16"


def test_pretended_processes_are_gone_afterwards() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with as_one_of(4):
        assert distributed.world_size() == 4
        assert distributed.gather_no_grad(x).shape == (8, 3)
        rows = distributed.exchange_rows(x, torch.tensor([7, 0, 3]))
        assert rows.shape == (3, 3)
        assert rows.requires_grad
    assert distributed.world_size() == 1
    assert not distributed.is_distributed()


def test_the_table_says_what_was_assumed(tmp_path: Path) -> None:
    text = "\n".join(lines(estimate(stage2(tmp_path, "t5"), gpus=2, gpu=SMALL)))
    for word in ("language", "trained", "ddp", "fsdp", "offload", "largest batch", "assumed"):
        assert word in text
