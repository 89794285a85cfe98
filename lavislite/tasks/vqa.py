"""Answering questions about pictures, beside what can be answered without looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.io import read_json
from lavislite.common.loading import evaluation_batches
from lavislite.common.logging import get_logger
from lavislite.common.schema import RunConfig
from lavislite.common.transfer import fetch
from lavislite.tasks.answers import (
    MODEL,
    VQA_TYPES,
    Measure,
    Types,
    accuracy_table,
    answer_key,
    has_answers,
    report_few_answers,
    score_answers,
    vqa_score,
)
from lavislite.tasks.base import Row, Task, evaluating, gather_rows, split_name
from lavislite.tasks.baselines import answer_counts, most_frequent
from lavislite.tasks.examples import Remembered, load, verdict
from lavislite.tasks.pictures import (
    OTHER,
    PICTURES,
    question_batches,
    seen,
    with_pictures,
    without_pictures,
)
from lavislite.tasks.prompts import QuestionPrompt
from lavislite.tasks.vqa_config import VQAConfig

logger = get_logger(__name__)

Candidates = Sequence[Any]  # answers to choose from: a list for all, or a list for each question


@catalog.tasks.register("vqa")
class VQATask(Task):
    """Training on one answer at a time, evaluation by VQA accuracy.

    Datasets offer ``annotation(index)`` as `VQADataset` does, and ``true_caption(index)`` for the
    baseline "caption". Models offer ``predict_answers(samples, num_beams, inference_method,
    max_len, min_len, num_ans_candidates, answer_list, prompt, length_penalty) -> list[str]``; for
    the baselines without a picture also for samples without "image". The samples, here and in
    training, hold the prompted question as ``text_input`` and the bare one as ``question``.

    Other kinds of questions are subclasses: they say by which `measures` answers are scored, which
    `types` of questions are told apart, and what their server wants.
    """

    Config: ClassVar[type[RunConfig]] = VQAConfig
    name = "vqa"
    evaluations: ClassVar[tuple[str, ...]] = ("vqa", "gqa", "ok_vqa", "aok_vqa")
    default_monitor = "acc"
    types: ClassVar[tuple[Types, ...]] = VQA_TYPES
    cfg: VQAConfig

    def __init__(self, cfg: VQAConfig) -> None:
        super().__init__(cfg)
        self.prompt = QuestionPrompt(cfg.prompt)
        self.remembered = Remembered()

    def measures(self) -> list[Measure]:
        """How answers are scored; the first is the main one."""
        return [Measure(vqa_score(self.cfg.vqa_accuracy))]

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        """The loss on ``samples["text_output"]``; samples without it (captions) go in unchanged."""
        return model(self.prompt.samples(samples) if "text_output" in samples else samples)

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """Accuracies in percent, the same on every process; none for a split without answers.

        ``acc``; ``acc_<type>`` for each answer type; ``acc_<baseline>`` and
        ``acc_<baseline>_<type>`` for each baseline. The rows hold questions, answers and scores;
        `files` the answers as the server wants them, and the accuracies by type.

        Raises:
            ConfigError: the model cannot answer, or the dataset has not what a baseline needs.
            DataError: unreadable pictures.
        """
        self.check(dataset)
        self._check_model(model)
        self._check_baselines(dataset)
        rows = self._answered(model, dataset, ctx)
        rows = [dataset.annotation(row["index"]) | row for row in rows]
        if not any(map(has_answers, rows)):
            logger.warning("%s has no answers: nothing to compare with.", split_name(dataset))
        if "majority" in self.cfg.baselines:
            self.add_majority(rows)
        measures = self.measures()
        metrics, accuracy = score_answers(
            rows, dataset, measures, self._known_baselines(rows), self.types
        )
        metrics, files = self.finish(rows, dataset, ctx, metrics)
        if accuracy:
            files["accuracy"] = accuracy | files.get("accuracy", {})
        score = measures[0].score_key(MODEL)
        self.remembered.keep(dataset, [(r["index"], r[score]) for r in rows if score in r])
        return EvalResult(metrics, [_kept(row) for row in rows], files)

    def finish(
        self,
        rows: list[Row],
        dataset: Any,
        ctx: EvalContext,  # noqa: ARG002
        metrics: dict[str, float],
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """All metrics, and the files beside the accuracies, of scored rows."""
        report_few_answers(rows, dataset)
        return metrics, {"answers": server_answers(rows, "prediction")}

    def add_majority(self, rows: list[Row]) -> None:
        """Add the answers of the baseline "majority" to the rows, if the questions have answers."""
        answered = [row["answers"] for row in rows if has_answers(row)]
        if answered:
            answer = most_frequent(answered)
            for row in rows:
                row["majority"] = answer

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        """Pictures with a question, the model's answer and people's, right and wrong ones.

        Both kinds are shown when the split was evaluated before; else they come as they are.
        """
        samples = load(dataset, self.remembered.pick(dataset, len(dataset), n), ctx)
        if not samples:
            return []
        with evaluating(model), ctx.autocast():
            said = self.ask(model, dataset, samples, self._candidates(dataset))
        return [
            self.example(dataset.annotation(i) | {"index": i} | {key: said[key][b] for key in said})
            for b, i in enumerate(samples["index"].tolist())
        ]

    def example(self, row: Row) -> Row:
        """What the report shows of an answered question."""
        measure = self.measures()[0]
        score = measure.score(row["prediction"], row) if measure.counts(row) else None
        return {
            "id": f"question {row['question_id']}",
            "image": row["image"],
            "question": row["question"],
            "captions": [],
            "truth": [f"{a} ({n})" if n > 1 else a for a, n in answer_counts(row["answers"])],
            "generated": row["prediction"],
            "verdict": None if score is None else verdict(score),
            "score": None if score is None else f"{100 * score:.0f} %",
            "attention": None,
        }

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        return accuracy_table(metrics)

    # ----------------------------------------------------------------------------------- answering

    def _answered(self, model: Any, dataset: Any, ctx: EvalContext) -> list[Row]:
        """``index`` and answers of the model and each baseline but "majority", in order."""
        candidates = self._candidates(dataset)
        source = with_pictures(dataset, others=OTHER in self.cfg.baselines)
        batches = question_batches(dataset, ctx.batch_size, ctx.limit_batches)
        rows: list[Row] = []
        with evaluating(model):
            for _, samples in evaluation_batches(source, ctx, batches, split_name(dataset)):
                with ctx.autocast():
                    said = self._said(model, dataset, samples, candidates)
                for b, index in enumerate(samples["index"].tolist()):
                    rows.append({"index": index, **{key: said[key][b] for key in said}})
        return gather_rows(rows, "index", sorted(i for b in batches for i in b), dataset)

    def _said(
        self, model: Any, dataset: Any, samples: dict[str, Any], candidates: Candidates | None
    ) -> dict[str, list[Any]]:
        """What the model says to a batch, and what it says as each baseline."""
        own = without_pictures(samples) | seen(model, samples)
        said = self.ask(model, dataset, own, candidates)
        bare = {key: samples[key] for key in ("text_input", "index")}
        for baseline in self.cfg.baselines:
            if baseline == "majority":
                continue
            given = dict(bare)
            if baseline == OTHER:
                given |= seen(model, samples, OTHER)
            elif baseline == "caption":
                given["caption"] = [dataset.true_caption(i) for i in samples["index"].tolist()]
            answers = self.ask(model, dataset, given, candidates)
            said |= {answer_key(baseline, key): answers[key] for key in answers}
        return said

    def ask(
        self, model: Any, dataset: Any, samples: Mapping[str, Any], candidates: Candidates | None
    ) -> dict[str, list[Any]]:
        """The model's answers to a batch, under ``prediction`` and whatever else is scored.

        Args:
            samples: ``text_input`` (bare questions), ``index``, and if they are to be used
                ``caption`` and the pictures, in one of the forms of `seen`.
        """
        del dataset  # for subclasses
        return {"prediction": self.predict_answers(model, samples, candidates)}

    def predict_answers(
        self, model: Any, samples: Mapping[str, Any], candidates: Candidates | None
    ) -> list[str]:
        """One answer per question: of `candidates`, or written where these are None."""
        cfg = self.cfg
        options: dict[str, Any] = {} if candidates is None else {"answer_list": candidates}
        if cfg.length_penalty is not None:
            options["length_penalty"] = cfg.length_penalty
        given = {key: samples[key] for key in (*PICTURES, "text_input") if key in samples}
        return model.predict_answers(
            self.prompt.samples(given, samples.get("caption")),
            num_beams=cfg.num_beams,
            inference_method="generate" if candidates is None else "rank",
            max_len=cfg.max_len,
            min_len=cfg.min_len,
            num_ans_candidates=cfg.num_ans_candidates,
            prompt="{}",  # the text has its prompt already: one place for training and evaluation
            **options,
        )

    # -------------------------------------------------------------------------------------- checks

    def _known_baselines(self, rows: Sequence[Row]) -> list[str]:
        """The baselines that have answered; nobody can tell the majority of a test split."""
        keys = rows[0].keys() if rows else ()
        measure = self.measures()[0]
        return [b for b in self.cfg.baselines if measure.answer_key(b) in keys]

    def _check_model(self, model: Any) -> None:
        if not hasattr(model, "predict_answers"):
            raise ConfigError(
                f"{type(model).__name__} cannot answer questions: it has no `predict_answers`."
            )

    def _check_baselines(self, dataset: Any) -> None:
        if "caption" in self.cfg.baselines and not hasattr(dataset, "true_caption"):
            raise ConfigError(
                f"run.baselines: 'caption' needs true captions, which {split_name(dataset)} does "
                "not have."
            )

    def _candidates(self, dataset: Any) -> list[str] | None:
        """The answers to choose from, or None when answers are written."""
        if self.cfg.inference_method != "rank":
            return None
        chosen = self.cfg.answer_list
        if isinstance(chosen, str):
            chosen = read_json(fetch(chosen))
        if chosen is None:
            chosen = getattr(dataset, "answer_list", None)
        if (
            not isinstance(chosen, list)
            or not chosen
            or not all(isinstance(a, str) for a in chosen)
        ):
            seen = "nothing" if chosen is None else repr(chosen)[:60]
            raise ConfigError(
                f"run.answer_list: 'rank' needs a list of answers to choose from, saw {seen}."
            )
        return chosen


def server_answers(rows: Sequence[Row], key: str) -> list[Row]:
    """The file of the VQA server, of the answers under `key`."""
    return [{"question_id": row["question_id"], "answer": row[key]} for row in rows]


def _kept(row: Row) -> Row:
    """The row for the results: without what the scoring alone needed."""
    return {key: value for key, value in row.items() if key != "details"}
