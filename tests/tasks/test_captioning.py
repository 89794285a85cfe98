"""Captions of whole splits: one per picture, scored against the split's own references."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lavislite.common import lavis_compat
from lavislite.common import logging as our_logging
from lavislite.common.errors import ConfigError, DataError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.generation import GenerationOptions
from lavislite.metrics import caption
from lavislite.metrics.caption import CaptionScores
from lavislite.tasks.captioner import Captioner, generation_arguments, server_file
from lavislite.tasks.captioning import CaptioningConfig, CaptioningTask
from lavislite.tasks.pretrain import ImageTextPretrainTask, PretrainConfig
from lavislite.tasks.prompts import CaptionPrompt

from .caption_parts import Captions, Pictures, Writer
from .fakes import run_processes


def share_of_true(captions: Any, references: Any, *, java: bool | None) -> CaptionScores:
    """Stands in for the official metrics: 1 for a caption that is among the references."""
    scores = {key: float(captions[key] in texts) for key, texts in references.items()}
    mean = sum(scores.values()) / len(scores)
    overall = {f"Bleu_{n}": mean / 2 for n in (1, 2, 3, 4)} | {"ROUGE_L": mean, "CIDEr": mean}
    if java is None:
        overall["METEOR"] = mean
    per_image = {"CIDEr": scores, "ROUGE_L": scores}
    return CaptionScores(overall, per_image, {"SPICE": "not now"})


@pytest.fixture(autouse=True)
def _metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "caption_scores", share_of_true)
    monkeypatch.setattr(our_logging, "_warned", set())


class NoCaps(Captions):
    domains = {f"id{k}": ("in-domain" if k < 5 else "near-domain") for k in range(7)}


class Knowing(Captions):
    def score_captions(self, captions: dict[str, str]) -> dict[str, float]:
        return {"true_objects": sum(text != "a 0" for text in captions.values()) / len(captions)}


def task(**options: Any) -> CaptioningTask:
    cfg = CaptioningConfig(**options)
    cfg.check()
    return CaptioningTask(cfg)


def evaluate(dataset: Any = None, batch_size: int = 3, model: Any = None) -> EvalResult:
    ctx = EvalContext(batch_size=batch_size)
    return task().evaluate(model or Writer(), Captions() if dataset is None else dataset, ctx)


def test_one_caption_per_picture_against_its_own_references() -> None:
    result = evaluate()
    assert result.metrics["CIDEr"] == pytest.approx(4 / 7)
    assert result.metrics["agg_metrics"] == pytest.approx(4 / 7 + 2 / 7)
    assert len(result.rows) == 7
    assert result.rows[3] == {
        "image_id": "id3",
        "image": "images/3.jpg",
        "caption": "a 3",
        "references": ["a 3", "3!"],
        "CIDEr": 1.0,
        "ROUGE_L": 1.0,
    }
    assert result.rows[4]["CIDEr"] == 0.0
    assert result.files == {
        "captions": [{"image_id": f"id{k}", "caption": f"a {k}"} for k in range(7)]
    }
    json.dumps([result.rows, result.files])


def test_scores_depend_neither_on_batches_nor_on_processes() -> None:
    alone = evaluate()
    assert all(evaluate(batch_size=size) == alone for size in (1, 2, 64))
    assert run_processes(2, evaluate) == [alone, alone]
    assert run_processes(3, lambda: evaluate(batch_size=4)) == [alone] * 3


def test_a_domains_score_is_the_mean_of_its_pictures() -> None:
    result = evaluate(NoCaps())
    assert result.metrics["CIDEr_in"] == pytest.approx(4 / 5)
    assert result.metrics["CIDEr_near"] == 0.0
    assert result.rows[6]["domain"] == "near-domain"
    weighted = (5 * result.metrics["CIDEr_in"] + 2 * result.metrics["CIDEr_near"]) / 7
    assert result.metrics["CIDEr"] == pytest.approx(weighted)


def test_a_dataset_may_have_scores_of_its_own() -> None:
    metrics = evaluate(Knowing()).metrics
    assert metrics["true_objects"] == pytest.approx(6 / 7)
    assert {"CIDEr", "agg_metrics"} < metrics.keys()


def test_what_was_skipped_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate()
        evaluate()
    assert caplog.text.count("SPICE was not computed: not now") == 1


def test_metrics_that_need_java_are_optional(caplog: pytest.LogCaptureFixture) -> None:
    assert "METEOR" in evaluate().metrics
    caplog.clear()
    without = CaptioningTask(CaptioningConfig(java_metrics=False))
    assert "METEOR" not in without.evaluate(Writer(), Captions(), EvalContext()).metrics
    assert (
        "METEOR" not in task().evaluate(Writer(), Captions(), EvalContext(limit_batches=1)).metrics
    )
    assert not caplog.records  # nobody wanted it


def test_a_split_without_captions_gives_the_servers_file_alone() -> None:
    empty = Captions()
    empty._pictures._references = [[]] * 7
    result = evaluate(empty)
    assert result.metrics == {}
    assert len(result.files["captions"]) == 7
    empty._pictures._references = [["x"], *[[]] * 6]
    with pytest.raises(DataError, match="6 of 7 pictures have no caption, the first is id1"):
        evaluate(empty)


def test_a_dry_run_scores_its_batches() -> None:
    ctx = EvalContext(batch_size=2, limit_batches=2)
    result = task().evaluate(Writer(), Captions(), ctx)
    assert [row["image_id"] for row in result.rows] == ["id0", "id1", "id2", "id3"]
    assert result.metrics["CIDEr"] == 1.0


def test_unreadable_pictures_and_shared_ids_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 7 predictions are missing \(first: picture id2\)"):
        evaluate(Captions(broken=(2,)))
    with pytest.raises(DataError, match="image_id x stands for images/0.jpg and for images/2.jpg"):
        evaluate(Captions(["x", "y", "x"]))


def test_errors_of_scoring_reach_every_process() -> None:
    class Broken(Captions):
        def score_captions(self, _: Any) -> dict[str, float]:
            raise DataError("no scene of id0")

    for error in run_processes(2, lambda: evaluate(Broken())):
        assert isinstance(error, DataError)
        assert "no scene of id0" in str(error)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["391895", "7"], [391895, 7]),
        (["coco_522418", "coco_1"], [522418, 1]),
        (["val2014/COCO_val2014_000000391895.jpg"], [391895]),
        (["a/1.jpg", "2"], ["a/1.jpg", "2"]),
        (["1", "01"], ["1", "01"]),
    ],
)
def test_the_coco_server_wants_numbers_where_ids_are_numbers(ids: list[str], expected: Any) -> None:
    rows = [{"image_id": image_id, "caption": "x"} for image_id in ids]
    assert [entry["image_id"] for entry in server_file(rows)] == expected


def test_options_reach_the_model() -> None:
    model = Writer()
    options = GenerationOptions(num_beams=3, max_new_tokens=12, min_new_tokens=2)
    Captioner(options, "a photo of").evaluate(model, Captions(), EvalContext())
    expected = asdict(options) | {"prompt": "a photo of", "samples": {"image"}}
    del expected["lavis_lengths"]
    assert model.calls == [expected]


def test_lengths_under_the_names_that_a_model_knows() -> None:
    def qformer(
        samples: Any, num_beams: int = 3, max_length: int = 30, min_length: int = 10
    ) -> Any:
        """Counts the start, as the Q-Former alone does."""

    def lavis(samples: Any, max_length: Any = None, min_length: Any = None, **_: Any) -> Any:
        """Counts as LAVIS did when these are given."""

    options = GenerationOptions(max_new_tokens=20, min_new_tokens=4)
    given = generation_arguments(qformer, options, CaptionPrompt())
    assert given == {"num_beams": 5, "max_length": 21, "min_length": 5}
    options.lavis_lengths = True
    given = generation_arguments(lavis, options, CaptionPrompt())
    assert (given["max_length"], given["min_length"]) == (20, 4)
    assert "max_new_tokens" not in given
    with pytest.raises(ConfigError, match="run.prompt: this model's `generate` has no such option"):
        generation_arguments(qformer, options, CaptionPrompt("a photo of"))
    options.top_p = 0.5
    with pytest.raises(ConfigError, match="run.generation.top_p"):
        generation_arguments(qformer, options, CaptionPrompt())


def test_training_uses_the_prompt_too() -> None:
    samples = {"image": torch.zeros(1), "text_input": ["a cat"]}
    assert task().train_step(Writer(), samples)["samples"] == samples
    prompted = task(prompt="a photo of").train_step(Writer(), samples)["samples"]
    assert prompted == {**samples, "prompt": "a photo of"}
    assert "prompt" not in samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_captions": 2}, "run.generation.num_captions: one caption per picture"),
        ({"max_new_tokens": 0}, "run.generation.max_new_tokens"),
        ({"num_beams": 0}, "run.generation.num_beams"),
    ],
)
@pytest.mark.parametrize("config", [CaptioningConfig, PretrainConfig])
def test_options_that_cannot_be(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(generation=GenerationOptions(**options)).check()


def test_what_model_or_dataset_lack_is_said() -> None:
    with pytest.raises(ConfigError, match="Linear cannot write captions"):
        evaluate(model=nn.Linear(1, 1))
    other = SimpleNamespace(name="x", split="val", evaluation="multilabel")
    with pytest.raises(ConfigError, match=r"x/val offers no captions .*'multilabel'"):
        evaluate(other)
    nothing = Captions()
    nothing._pictures = Pictures([], [])
    with pytest.raises(DataError, match="fake/val holds no pictures"):
        evaluate(nothing)


def test_examples_show_what_was_said_and_its_score() -> None:
    tried, data = task(), Captions()
    before = tried.examples(Writer(), data, EvalContext(), n=2)
    assert [row["id"] for row in before] == ["id0", "id3"]
    tried.evaluate(Writer(), data, EvalContext())
    shown = tried.examples(Writer(), data, EvalContext(), n=2)
    # One of the better half and one of the rest.
    assert [(row["id"], row["score"]) for row in shown] == [
        ("id0", "CIDEr 1.00"), ("id4", "CIDEr 0.00")
    ]  # fmt: skip
    assert [row["generated"] for row in shown] == ["a 0", "a 4"]
    assert [row["truth"] for row in shown] == [["a 0", "0!"], ["else"]]
    assert shown[1]["image"] == "images/4.jpg"


def test_the_table_has_a_line_per_domain() -> None:
    class Both(NoCaps, Knowing):
        pass

    metrics = evaluate(Both()).metrics
    table = task().summary({f"fake/val/{name}": value for name, value in metrics.items()})
    assert table == [
        ["fake/val", "CIDEr", "Bleu_4", "METEOR", "ROUGE_L", "true_objects"],
        ["all", "0.571", "0.286", "0.571", "0.571", "0.857"],
        ["in", "0.800", "", "", "", ""],
        ["near", "0.000", "", "", "", ""],
    ]
    assert task().summary({}) == []


def test_the_official_metrics_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    references = [["A red circle.", "a circle, red"], ["Two blue squares."], ["a dog on a mat"]]
    data = Captions(["1", "2", "3"])
    data._pictures._references = references

    class Copying(Writer):
        def generate(self, samples: dict[str, Any], **_: Any) -> list[str]:
            return [references[int(image[0, 0, 0])][0].lower() for image in samples["image"]]

    without = CaptioningTask(CaptioningConfig(java_metrics=False))
    result = without.evaluate(Copying(), data, EvalContext())
    assert result.metrics["Bleu_4"] == pytest.approx(1.0, abs=1e-3)
    assert result.metrics["ROUGE_L"] == pytest.approx(1.0)
    assert result.metrics["CIDEr"] > 5
    each = [row["CIDEr"] for row in result.rows]
    assert result.metrics["CIDEr"] == pytest.approx(sum(each) / 3)


def test_pretraining_scores_captions_in_the_same_way() -> None:
    data = NoCaps()
    data.evaluation = "caption"
    pretraining = ImageTextPretrainTask(PretrainConfig(java_metrics=True))
    found = pretraining.evaluate(Writer(), data, EvalContext(batch_size=3))
    assert found == evaluate(NoCaps())
    assert pretraining.monitor_for(["loss", "caption"]) == "agg_metrics"
    assert pretraining.monitor_for(["caption", "retrieval"]) == "r_mean"
    metrics = {f"a/val/{name}": value for name, value in found.metrics.items()}
    table = pretraining.summary({**metrics, "b/val/loss": 1.0, "b/val/loss_itg": 1.0})
    assert len({len(row) for row in table}) == 1
    assert [row[0] for row in table] == ["a/val", "all", "in", "near", "b/val", "held-out loss"]
    assert pretraining.examples(Writer(), data, EvalContext(), 1)[0]["score"] == "CIDEr 1.00"


def test_the_flat_keys_of_lavis_are_generation_options() -> None:
    flat = {"max_len": 30, "min_len": 8, "num_beams": 3, "length_penalty": 0.5, "prompt": "a"}
    assert lavis_compat.translate_run(flat, {"generation", "prompt"}) == {
        "prompt": "a",
        "generation": {
            "max_new_tokens": 30,
            "min_new_tokens": 8,
            "lavis_lengths": True,
            "num_beams": 3,
            "length_penalty": 0.5,
        },
    }
    ours = {"generation": {"num_beams": 1}, "num_beams": 3}
    assert lavis_compat.translate_run(ours, {"generation"}) == {"generation": {"num_beams": 1}}
    own = {"max_len": 10, "num_beams": 3, "prompt": "Question: {}"}
    assert lavis_compat.translate_run(own, set(own)) == own


def test_flat_keys_mean_nothing_to_a_task_that_writes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert lavis_compat.translate_run({"num_beams": 3, "answer_list": "x"}, set()) == {}
    assert "run.num_beams has no effect: this task writes no text" in caplog.text
    assert "run.answer_list has no effect: this task answers no questions" in caplog.text
