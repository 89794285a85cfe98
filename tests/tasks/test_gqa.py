"""GQA: LAVIS's rule and the official one, and what the official files say beside the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavislite.common.errors import ConfigError, DataError, UserError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.metrics.gqa import gqa_scores
from lavislite.tasks.gqa import GQAConfig, GQATask

from .fakes import run_processes
from .question_parts import BASELINES, Answerer, Questions


class Balanced(Questions):
    """Official records: questions about colours are open, the others binary."""

    evaluation = "gqa"

    def annotation(self, i: int) -> dict[str, Any]:
        found = super().annotation(i)
        kind, picture = i % 2, i // 2
        details = {
            "types": {
                "structural": "verify" if kind else "query",
                "semantic": "global" if kind else "attr",
                "detailed": "place" if kind else "color",
            },
            "groups": {"global": None if kind else "color", "local": None},
            "entailed": [str(100 + i), str(100 + (i ^ 1))],
            "equivalent": [],
            "semantic": [{"operation": "select", "argument": "thing (0)", "dependencies": []}],
            "isBalanced": picture != 5,
            "annotations": {"question": {"0": "0"}, "answer": {}, "fullAnswer": {}},
            "fullAnswer": "A sentence.",
        }
        return {
            **found,
            "question_id": str(100 + i),
            "answers": found["answers"][:1],
            "question_type": "",
            "answer_type": "",
            "details": details if self.answered else {},
        }


class Wordy(Answerer):
    """Says "a red" for red; wrong about picture 4."""

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        said = super().predict_answers(samples, **options)
        if "image" in samples:
            numbers = samples["image"][:, 0, 0, 0].long().tolist()
            said = ["fish" if n == 4 else a for n, a in zip(numbers, said, strict=True)]
        return ["a red" if answer == "red" else answer for answer in said]


def task(**options: Any) -> GQATask:
    cfg = GQAConfig(**options)
    cfg.check()
    return GQATask(cfg)


def evaluate(
    dataset: Any = None,
    model: Any = None,
    batch_size: int = 5,
    limit: int | None = None,
    **options: Any,
) -> EvalResult:
    data = Balanced() if dataset is None else dataset
    ctx = EvalContext(batch_size=batch_size, limit_batches=limit)
    return task(**options).evaluate(model or Wordy(), data, ctx)


def official(result: EvalResult, dataset: Any, **files: Any) -> Any:
    questions = {}
    for row in result.rows:
        record = dataset.annotation(row["index"])
        known = {"answer": record["answers"][0], "question": record["question"]}
        questions[record["question_id"]] = {
            **record["details"], **known, "imageId": record["image_id"]
        }  # fmt: skip
    given = {e["questionId"]: e["prediction"] for e in result.files["leaderboard"]}
    return gqa_scores(given, questions, **files)


def written(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content), "utf-8")
    return str(path)


def test_both_rules_on_balanced_questions_by_type() -> None:
    result = evaluate()
    found, scores = result.metrics, official(result, Balanced())
    assert found["acc"] == pytest.approx(80.0)  # picture 5 does not count
    assert found["acc_exact"] == pytest.approx(60.0) == pytest.approx(scores.accuracy)
    assert (found["acc_binary"], found["acc_open"]) == (pytest.approx(80.0), pytest.approx(80.0))
    assert (found["acc_verify"], found["acc_attr"]) == (found["acc_binary"], found["acc_open"])
    assert found["distribution"] == pytest.approx(scores.distribution)
    assert "score" not in result.rows[-1]
    assert "validity" not in found
    assert result.files["leaderboard"][1] == {"questionId": "101", "prediction": "no"}
    accuracy = result.files["accuracy"]
    assert accuracy["perStructuralType"] == {
        "query": pytest.approx(80),
        "verify": pytest.approx(80),
    }
    assert accuracy["official"]["accuracy"] == pytest.approx(scores.accuracy)
    assert accuracy["official"]["by_structural"]["query"] == scores.by_structural["query"]
    json.dumps([result.rows, result.files])


def test_what_the_files_tell_is_what_the_official_script_says(tmp_path: Path) -> None:
    rows = [Balanced().annotation(i) for i in range(12)]
    offered = {
        r["question_id"]: {"valid": ["red", "blue", "yes"], "plausible": ["red"]} for r in rows
    }
    graphs = {
        str(n): {"width": 10, "height": 10, "objects": {"0": {"x": 0, "y": 0, "w": 5, "h": 5}}}
        for n in range(6)
    }
    light = {r["question_id"]: [[1 / 49] * 7] * 7 for r in rows}
    listed = [{"questionId": key, "attention": value} for key, value in light.items()]
    for attention in (light, listed):
        result = evaluate(
            choices=written(tmp_path / "choices.json", offered),
            scene_graphs=written(tmp_path / "graphs.json", graphs),
            attention=written(tmp_path / "attention.json", attention),
            consistency=True,
        )
        scores = official(
            result, Balanced(), choices=offered, scene_graphs=graphs, attention=light,
            consistency=True,
        )  # fmt: skip
        for name in ("validity", "plausibility", "consistency", "grounding", "distribution"):
            assert result.metrics[name] == pytest.approx(getattr(scores, name))
        assert result.metrics["grounding"] == pytest.approx(25.0)
        assert 0 < result.metrics["validity"] < 100
    table = task().summary({f"g/val/{name}": value for name, value in result.metrics.items()})
    assert ["grounding", "25.0"] in table
    assert ["exact", "60.0"] in table


def test_missing_files_are_found_before_a_question_is_asked(tmp_path: Path) -> None:
    model = Wordy()
    with pytest.raises(UserError, match=r"No run.choices .*nothing.json"):
        evaluate(model=model, choices=str(tmp_path / "nothing.json"))
    assert model.asked == []
    with pytest.raises(ConfigError, match="run.scene_graphs: grounding needs it"):
        task(attention="x.json")
    with pytest.raises(DataError, match="questions/val: question '100' has no entry"):
        evaluate(choices=written(tmp_path / "few.json", {"1": {"valid": [], "plausible": []}}))


def test_questions_without_official_records_have_both_accuracies(tmp_path: Path) -> None:
    class Plain(Questions):
        def annotation(self, i: int) -> dict[str, Any]:
            found = super().annotation(i)
            return {**found, "answers": found["answers"][:1]}

    result = evaluate(Plain())
    assert set(result.metrics) == {"acc", "acc_exact"}
    assert result.metrics["acc"] == pytest.approx(100 * 10 / 12)
    with pytest.raises(ConfigError, match="run.consistency: questions/val has no official GQA"):
        evaluate(Plain(), consistency=True)
    # Of several annotators' answers the most frequent counts.
    assert evaluate(Questions()).metrics == result.metrics


def test_a_rehearsal_cannot_know_all_that_an_answer_entails() -> None:
    assert "consistency" not in evaluate(limit=1, consistency=True).metrics
    assert "consistency" in evaluate(consistency=True).metrics


def test_a_test_split_gives_the_leaderboards_file_alone() -> None:
    data = Balanced(answered=False)
    data.annotation = lambda i: {  # type: ignore[method-assign]
        **Balanced(answered=False).annotation(i), "details": {"isBalanced": True}
    }  # fmt: skip
    result = evaluate(data, consistency=True)
    assert result.metrics == {}
    assert set(result.files) == {"leaderboard"}
    assert len(result.files["leaderboard"]) == 12


def test_figures_depend_neither_on_batches_nor_on_processes() -> None:
    def found(size: int = 5) -> EvalResult:
        return evaluate(Balanced(7), batch_size=size, baselines=BASELINES, consistency=True)

    alone = found()
    assert {"acc_blind_exact", "acc_majority", "acc_caption_open"} < alone.metrics.keys()
    assert all(found(size) == alone for size in (1, 3, 64))
    assert run_processes(2, found) == [alone, alone]


def test_less_distance_is_better() -> None:
    assert not task().higher_is_better("gqa/val/distribution")
    assert task().higher_is_better("gqa/val/acc")
    assert task().default_monitor == "acc"
    data = Balanced()
    data.evaluation = "ok_vqa"
    with pytest.raises(ConfigError, match="Task 'gqa' cannot evaluate questions/val"):
        evaluate(data)
