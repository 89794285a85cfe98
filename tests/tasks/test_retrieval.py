"""Retrieval evaluation against scores known beforehand."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from lavislite.common.errors import ConfigError, DataError, TrainingError
from lavislite.common.evaluation import EvalContext
from lavislite.metrics.retrieval import recalls
from lavislite.tasks.retrieval import RetrievalConfig, RetrievalTask

from .fakes import FakeRanker, FakeRetrieval, run_processes

CAPTIONS = [2, 3, 1, 2, 4, 2, 2, 1, 3, 2, 2]  # 11 images, 24 texts


def task(**options: object) -> RetrievalTask:
    return RetrievalTask(RetrievalConfig(**options))  # type: ignore[arg-type]


def tables(n_images: int, n_texts: int, queries: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    itc = torch.rand(queries, n_images, n_texts, generator=draw)
    return itc, 3 * torch.randn(n_images, n_texts, generator=draw)


def test_similarity_is_the_best_query_and_itc_recalls_are_the_metric_of_it() -> None:
    data = FakeRetrieval(CAPTIONS)
    itc, _ = tables(11, 24)
    found = task(rerank=False).evaluate(FakeRanker(itc), data, EvalContext(batch_size=4)).metrics
    expected = recalls(itc.amax(0), data.image_to_texts, data.text_to_image)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value)
        assert key == "agg_metrics" or found[f"itc_{key}"] == pytest.approx(value)
    assert found["chance_img_r1"] == pytest.approx(100 / 11)


@pytest.mark.parametrize("how", ["itm", "itm+itc", "itm+itc/temp"])
def test_full_reranking_is_the_metric_of_the_fused_table(how: str) -> None:
    data = FakeRetrieval(CAPTIONS)
    itc, itm = tables(11, 24)
    model = FakeRanker(itc, itm, temp=0.1)
    result = task(k_test=1000, rerank_score=how).evaluate(model, data, EvalContext(batch_size=4))
    fused = {"itm": itm, "itm+itc": itm + itc.amax(0), "itm+itc/temp": itm + itc.amax(0) / 0.1}
    expected = recalls(fused[how], data.image_to_texts, data.text_to_image)
    assert {key: result.metrics[key] for key in expected} == pytest.approx(expected)


def test_only_the_first_k_are_reranked_and_the_others_are_misses() -> None:
    # Similarity puts the right text last for image 0 and second for image 1; matching is perfect.
    itc = torch.tensor([[[0.1, 0.9, 0.8], [0.9, 0.8, 0.1], [0.2, 0.1, 0.9]]])
    data, perfect = FakeRetrieval([1, 1, 1]), 10 * torch.eye(3)
    result = task(k_test=2).evaluate(FakeRanker(itc, perfect), data, EvalContext())
    assert [row["rank"] for row in result.rows[:3]] == [None, 1, 1]
    assert [row["itc_rank"] for row in result.rows[:3]] == [3, 2, 1]
    assert result.metrics["txt_r1"] == pytest.approx(200 / 3)
    assert result.metrics["txt_r10"] == pytest.approx(200 / 3)  # 10 > k: still a miss
    assert result.metrics["itc_txt_r1"] == pytest.approx(100 / 3)


def test_each_wanted_pair_is_scored_once_and_each_image_remembered_once() -> None:
    data = FakeRetrieval(CAPTIONS)
    itc, itm = tables(11, 24)
    model = FakeRanker(itc, itm)
    task(k_test=3, rerank_batch_size=5).evaluate(model, data, EvalContext(batch_size=4))
    similar = itc.amax(0)
    wanted = {(i, t) for i in range(11) for t in similar[i].topk(3).indices.tolist()}
    wanted |= {(i, t) for t in range(24) for i in similar[:, t].topk(3).indices.tolist()}
    assert sorted(model.pairs) == sorted(wanted)
    assert model.memories == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_forwards_are_full_and_hold_texts_of_similar_length() -> None:
    data = FakeRetrieval(CAPTIONS)
    model = FakeRanker(*tables(11, 24))
    task(rerank_batch_size=16).evaluate(model, data, EvalContext(batch_size=16))
    assert [len(texts) for texts in model.forwards] == [16] * 16 + [8]
    assert all(
        max(map(len, a)) <= min(map(len, b))
        for a, b in zip(model.forwards, model.forwards[1:], strict=False)
    )


def test_a_smaller_gallery_clamps_k_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    data = FakeRetrieval([1])
    data.name = "one_image"
    model = FakeRanker(torch.ones(1, 1, 1), torch.ones(1, 1))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            metrics = task(k_test=128).evaluate(model, data, EvalContext()).metrics
    assert metrics["r_mean"] == 100.0
    said = [r.getMessage() for r in caplog.records if "one_image/test" in r.getMessage()]
    assert len(said) == 1
    assert "run.k_test 128" in said[0]


def test_metrics_and_rows_do_not_depend_on_the_number_of_processes() -> None:
    def evaluate() -> tuple[dict[str, float], list[dict]]:
        data = FakeRetrieval(CAPTIONS)
        ctx = EvalContext(batch_size=2)
        result = task(k_test=4, rerank_batch_size=7).evaluate(
            FakeRanker(*tables(11, 24)), data, ctx
        )
        return result.metrics, result.rows

    alone = evaluate()
    for result in run_processes(2, evaluate):
        assert result == alone


def test_a_constant_model_scores_nothing() -> None:
    data = FakeRetrieval(CAPTIONS)
    model = FakeRanker(torch.zeros(1, 11, 24), torch.zeros(11, 24))
    metrics = task().evaluate(model, data, EvalContext()).metrics
    assert metrics["txt_r1"] == metrics["img_r1"] == metrics["itc_r_mean"] == 0.0


def test_rows_tell_what_was_found() -> None:
    data = FakeRetrieval([2, 1])
    itc = torch.tensor([[[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]]])
    rows = task(rerank=False).evaluate(FakeRanker(itc), data, EvalContext()).rows
    assert [row["query"] for row in rows] == ["image"] * 2 + ["text"] * 3
    assert rows[0]["id"] == "id0"
    assert [(a["text"], a["correct"]) for a in rows[0]["top"]] == [
        (data.texts[0], True),
        (data.texts[2], False),
        (data.texts[1], True),
    ]
    assert (rows[3]["text"], rows[3]["rank"]) == (data.texts[1], 2)
    assert rows[3]["top"][0]["image"].endswith("1.jpg")


def test_an_unreadable_image_is_refused_by_name() -> None:
    data = FakeRetrieval([1, 1, 1], broken=(1,))
    with pytest.raises(DataError, match=r"1 of 3 predictions are missing .*image id1"):
        task().evaluate(FakeRanker(*tables(3, 3)), data, EvalContext())


def test_scores_that_are_not_numbers_are_refused() -> None:
    itc, itm = tables(3, 3)
    itm[1, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"fake/test: 1 of 9 scores are NaN"):
        task().evaluate(FakeRanker(itc, itm), FakeRetrieval([1, 1, 1]), EvalContext())


def test_a_model_without_matching_head_is_told_which_option() -> None:
    with pytest.raises(ConfigError, match=r"run\.rerank: FakeRanker has no matching head"):
        task().evaluate(FakeRanker(tables(3, 3)[0]), FakeRetrieval([1, 1, 1]), EvalContext())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank_score": "itm+itk"}, r"Did you mean 'itm\+itc'"),
        ({"k_test": 0}, r"run\.k_test"),
        ({"rerank_batch_size": 0}, r"run\.rerank_batch_size"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**options)


def test_a_dry_run_scores_the_first_batches_as_a_gallery_of_their_own() -> None:
    data = FakeRetrieval(CAPTIONS)
    itc, itm = tables(11, 24)
    ctx = EvalContext(batch_size=3, limit_batches=2)
    metrics = task(rerank=False).evaluate(FakeRanker(itc, itm), data, ctx).metrics
    n_texts = sum(CAPTIONS[:6])
    expected = recalls(
        itc.amax(0)[:6, :n_texts], data.image_to_texts[:6], data.text_to_image[:n_texts]
    )
    assert metrics["r_mean"] == pytest.approx(expected["r_mean"])


def test_evaluation_leaves_training_mode_and_random_numbers_alone() -> None:
    model = FakeRanker(*tables(11, 24)).train()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(9)
    task().evaluate(model, FakeRetrieval(CAPTIONS), EvalContext(batch_size=4))
    assert torch.equal(torch.rand(3), expected)
    assert model.training


def test_examples_show_the_best_captions_and_mark_the_true_ones() -> None:
    data = FakeRetrieval([2, 1, 1])
    itc, _ = tables(3, 4)
    itm = torch.full((3, 4), -5.0)
    itm[0, 1] = itm[1, 2] = itm[2, 0] = 5.0
    shown = task().examples(FakeRanker(itc, itm), data, EvalContext(), n=2)
    assert [row["id"] for row in shown] == ["id0", "id1"]
    assert shown[0]["captions"][0]["text"] == data.texts[1]
    assert shown[0]["captions"][0]["correct"]
    assert shown[0]["captions"][0]["score"] == pytest.approx(5 + float(itc.amax(0)[0, 1]))
    assert shown[0]["truth"] == data.texts[:2]
    assert shown[0]["generated"] is None
    assert shown[0]["attention"] is None


def test_examples_show_what_the_model_says_and_where_it_looks() -> None:
    class Talking(FakeRanker):
        def generate(self, samples: dict) -> list[str]:
            return [f"image {int(x[0, 0, 0])}" for x in samples["image"]]

        def cross_attention(self, samples: dict) -> Tensor:
            attention = torch.zeros(len(samples["text_input"]), 2, 4, 3, 10)
            attention[:, -1, :, :, 1 + 5] = 1.0  # after the class token: row 1, column 2 of 3 x 3
            return attention

    shown = task().examples(Talking(*tables(3, 3)), FakeRetrieval([1, 1, 1]), EvalContext(), n=3)
    assert [row["generated"] for row in shown] == ["image 0", "image 1", "image 2"]
    assert shown[0]["attention"].shape == (3, 3)
    assert shown[0]["attention"][1, 2] == 1.0


def test_the_summary_compares_reranked_itc_and_chance() -> None:
    data = FakeRetrieval(CAPTIONS)
    metrics = task(k_test=4).evaluate(FakeRanker(*tables(11, 24)), data, EvalContext()).metrics
    paths = {f"fake/test/{key}": value for key, value in metrics.items()}
    table = task().summary(paths)
    assert [line[0] for line in table] == ["fake/test", "re-ranked", "ITC", "chance"]
    assert table[1][1] == f"{metrics['txt_r1']:.1f}"
    assert table[3][-1] == f"{metrics['chance_r_mean']:.1f}"
    assert len({len(line) for line in table}) == 1
    assert task().summary({"loss": 1.0}) == []


def test_losses_fall_and_recalls_rise() -> None:
    assert task().default_monitor == "r_mean"
    assert task().higher_is_better("coco/val/r_mean")
    assert not task().higher_is_better("coco/val/loss_itc")
