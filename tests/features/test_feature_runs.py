"""`run.feature_cache` in whole runs: the same losses without the tower, and early refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from feature_parts import draw

from lavislite.build import build_runner
from lavislite.common.config import Config, resolve
from lavislite.common.errors import ConfigError
from lavislite.validate import validate_project

TOY = str(Path(__file__).parents[1] / "toy_parts.py")
MEAN = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "image_size": 16}


def project(folder: Path, cache: Any, **run: Any) -> Config:
    """Stage 1 on twelve pictures with two captions each, in front of a tiny random tower."""
    if not (folder / "images").is_dir():
        draw(folder / "images", 12)
        words = [f"a {colour} {what}" for colour in ("red", "blue", "green") for what in "abcd"]
        records = [
            {"image": f"{k}.png", "caption": [word, f"it is {word}"]}
            for k, word in enumerate(words)
        ]
        (folder / "list.json").write_text(json.dumps(records))
    tower = {"width": 16, "depth": 1, "heads": 2}
    qformer = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
    return resolve(
        {
            "model": {
                "arch": "blip2",
                "vision": {"name": "tiny", "image_size": 16, "weights": "none", "options": tower},
                "qformer": {**qformer, "init": "none"},
                "num_query_tokens": 4,
                "embed_dim": 8,
                "tokenizer": "from_data",
            },
            "datasets": {
                "mine": {
                    "builder": "image_caption",
                    "annotations": {"train": str(folder / "list.json")},
                    "images": str(folder / "images"),
                    "vis_processor": {"train": {"name": "blip_image_eval", **MEAN}},
                }
            },
            "run": {
                "task": "image_text_pretrain",
                "max_steps": 5,
                "batch_size_train": 4,
                "num_workers": 0,
                "log_freq": 1,
                "init_lr": 1e-3,
                "report": False,
                "tensorboard": False,
                "device": "cpu",
                "output_dir": str(folder / "out"),
                "feature_cache": cache,
                **run,
            },
        },
        origin="test",
    )


def train(cfg: Config) -> tuple[list[dict[str, float]], int]:
    """What the log says of every step, and how often the tower was called in training."""
    runner = build_runner(cfg)
    calls: list[int] = []
    runner.model.visual_encoder.register_forward_hook(lambda *_: calls.append(1))
    runner.train()
    rows = map(json.loads, (runner.run_dir / "log.jsonl").read_text().splitlines())
    of_interest = ("loss", "loss_itc", "loss_itm", "loss_lm", "grad_norm")
    return [{k: row[k] for k in of_interest} for row in rows if row["event"] == "train"], len(calls)


def test_with_fp32_the_losses_are_those_without_a_cache(tmp_path: Path) -> None:
    plain, calls = train(project(tmp_path, None))
    assert calls == 5
    for _ in range(2):  # filled, then found
        cached, calls = train(project(tmp_path, {"dtype": "fp32"}))
        assert calls == 0
        assert cached == plain


@pytest.mark.parametrize(("dtype", "close"), [("bf16", 5e-3), ("int8", 2e-2)])
def test_rounded_features_give_nearly_the_same_losses(
    tmp_path: Path, dtype: str, close: float
) -> None:
    plain, _ = train(project(tmp_path, None, max_steps=1))
    cached, _ = train(project(tmp_path, {"dtype": dtype}, max_steps=1))
    assert cached[0] == pytest.approx(plain[0], rel=close)
    assert cached != plain


def test_a_run_resumes_to_the_bit_with_views(tmp_path: Path) -> None:
    processor = {"train": {"name": "blip2_image_train", **MEAN}}

    def run(**options: Any) -> list[dict[str, float]]:
        cfg = project(tmp_path, {"views": 3}, **options)
        cfg.datasets["mine"].vis_processor = processor
        return train(cfg)[0]

    whole = run(save_every_steps=2, keep_last=9)
    (step,) = (tmp_path / "out").glob("run/2*/checkpoints/step_2")
    assert run(resume=str(step)) == whole  # its log goes on after step 2
    assert run(output_dir=str(tmp_path / "other")) == whole


def test_a_dry_run_leaves_no_cache(tmp_path: Path) -> None:
    runner = build_runner(project(tmp_path, True, num_workers=0), dry_run=True)
    runner.dry_run()
    assert not list((tmp_path / "cache/features").iterdir())


def test_a_tower_that_trains_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    cfg = project(tmp_path, True)
    cfg.model.vision.freeze = False
    for refuses in (build_runner, lambda cfg: list(validate_project(cfg))):
        with pytest.raises(ConfigError, match=r"model\.vision\.freeze is false"):
            refuses(cfg)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.yaml"))


def test_a_model_without_a_tower_is_refused(tmp_path: Path) -> None:
    run = {"task": "toy_task", "device": "cpu", "output_dir": str(tmp_path), "feature_cache": True}
    cfg = resolve(
        {"user_dir": TOY, "model": {"arch": "toy"}, "datasets": {"toy_data": {}}, "run": run},
        origin="test",
    )
    with pytest.raises(ConfigError, match="model 'toy' has no frozen vision tower"):
        build_runner(cfg)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"veiws": 2}, r"run\.feature_cache\.veiws: unknown key\. Did you mean 'views'\?"),
        ({"views": "two"}, r"run\.feature_cache\.views: expected int, saw 'two'"),
        ({"views": 0}, r"run\.feature_cache\.views: expected 1 or more, saw 0"),
        ({"max_gb": -1}, r"run\.feature_cache\.max_gb: expected 0 or more, saw -1"),
        ({"dtype": "int9"}, r"dtype: 'int9' is unknown\. Did you mean 'int8'\?"),
    ],
)
def test_mistakes_in_the_option(tmp_path: Path, cache: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_runner(project(tmp_path, cache))


def test_true_and_false_stand_for_the_defaults_and_for_none(tmp_path: Path) -> None:
    asked = project(tmp_path, True).run.feature_cache
    assert (asked.dtype, asked.views, asked.folder) == ("bf16", 1, None)
    assert project(tmp_path, {}).run.feature_cache == asked
    assert project(tmp_path, False).run.feature_cache is None
    again = resolve(project(tmp_path, {"views": 2}).to_dict(), origin="saved")
    assert again.run.feature_cache.views == 2
