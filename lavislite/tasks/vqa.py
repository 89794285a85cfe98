"""Answering questions about pictures, beside what can be answered without looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import ConfigError
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.io import fetch, read_json
from lavislite.common.loading import batch_indices, evaluation_batches
from lavislite.common.registry import did_you_mean
from lavislite.common.schema import RunConfig, check_bounds
from lavislite.metrics.vqa import VERSIONS
from lavislite.tasks.answers import BASELINES, accuracy_table, score_answers
from lavislite.tasks.base import Row, Task, evaluating, gather_rows, split_name
from lavislite.tasks.examples import load, pick

INFERENCE = ("generate", "rank")


@dataclass
class VQAConfig(RunConfig):
    """How questions are put and answered.

    Attributes:
        prompt: the question takes the place of ``{}``, in training and evaluation.
        max_len, min_len: tokens of an answer.
        length_penalty: null leaves it to the model (BLIP-2: 0 with OPT, -1 with T5).
        inference_method: "generate" writes an answer, "rank" chooses the likeliest of a list.
        answer_list: the list for "rank": a JSON file, or the answers themselves; null takes the
            dataset's.
        num_ans_candidates: how many of the list the model looks at closely, or at once.
        vqa_accuracy: which version of the official script, "2021" (current) or "2017" (LAVIS).
        baselines: what to report beside the model. "majority": the most frequent answer of the
            evaluated split, whatever the question; "blind": the language model without a picture;
            "other_image": the model with the picture of another record; "caption": the language
            model with a true caption instead of the picture (an upper bound).
    """

    task: str = "vqa"
    prompt: str = "Question: {} Short answer:"
    max_len: int = 10
    min_len: int = 1
    num_beams: int = 5
    length_penalty: float | None = None
    inference_method: str = "generate"
    answer_list: Any = None
    num_ans_candidates: int = 128
    vqa_accuracy: str = "2021"
    baselines: list[str] = field(default_factory=list)

    def check(self) -> None:
        super().check()
        check_bounds("run", self, dict.fromkeys(_COUNTS, (1, None)))
        check_bounds("run", self, {"min_len": (0, self.max_len)})
        if self.prompt and self.prompt.count("{}") != 1:
            raise ConfigError(
                f"run.prompt: the question's place {{}} is needed once: {self.prompt!r}"
            )
        for key, known in (("inference_method", INFERENCE), ("vqa_accuracy", VERSIONS)):
            _check_name(f"run.{key}", getattr(self, key), known)
        for baseline in self.baselines:
            _check_name("run.baselines", baseline, BASELINES)


_COUNTS = ("max_len", "num_beams", "num_ans_candidates")


def _check_name(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f"{key}: '{name}' is unknown.{near} Known: {', '.join(known)}.")


@catalog.tasks.register("vqa")
class VQATask(Task):
    """Training on one answer at a time, evaluation by VQA accuracy.

    Datasets offer ``annotation(index)`` as `VQADataset` does, and ``true_caption(index)`` for the
    baseline "caption". Models offer ``predict_answers(samples, num_beams, inference_method,
    max_len, min_len, num_ans_candidates, answer_list, prompt, length_penalty) -> list[str]``; for
    the baselines without a picture also for samples without "image".
    """

    Config = VQAConfig
    name = "vqa"
    evaluations = ("vqa",)
    default_monitor = "acc"
    cfg: VQAConfig

    def train_step(self, model: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        """The loss on ``samples["text_output"]``; samples without it (captions) go in unchanged."""
        if "text_output" in samples:
            samples = {**samples, "text_input": self._asked(samples["text_input"])}
        return model(samples)

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        """Accuracies in percent, the same on every process; none for a split without answers.

        ``acc``; ``acc_<type>`` for each answer type; ``acc_<baseline>`` and
        ``acc_<baseline>_<type>`` for each baseline. The rows hold questions, answers and scores;
        `files` the answers as the VQA server wants them, and the accuracies by type.

        Raises:
            ConfigError: the model cannot answer, or the dataset has not what a baseline needs.
            DataError: unreadable pictures.
        """
        self.check(dataset)
        self._check_model(model)
        self._check_baselines(dataset)
        candidates = self._candidates(dataset)
        source = OtherImages(dataset) if "other_image" in self.cfg.baselines else dataset
        batches = batch_indices(len(dataset), ctx.batch_size, ctx.limit_batches)
        rows: list[Row] = []
        with evaluating(model):
            for _, samples in evaluation_batches(source, ctx, batches, split_name(dataset)):
                with ctx.autocast():
                    said = self._answers(model, dataset, samples, candidates)
                for b, index in enumerate(samples["index"].tolist()):
                    rows.append({"index": index, **{who: said[who][b] for who in said}})
        rows = gather_rows(rows, "index", [i for batch in batches for i in batch], dataset)
        return score_answers(rows, dataset, self.cfg.baselines, self.cfg.vqa_accuracy)

    def examples(self, model: Any, dataset: Any, ctx: EvalContext, n: int) -> list[Row]:
        """Pictures with a question, the model's answer, and the one that most people gave."""
        samples = load(dataset, pick(len(dataset), n), ctx)
        if not samples:
            return []
        with evaluating(model), ctx.autocast():
            said = self._predict(model, samples, self._candidates(dataset))
        return [
            _example(dataset.annotation(i), answer)
            for i, answer in zip(samples["index"].tolist(), said, strict=True)
        ]

    def summary(self, metrics: dict[str, float]) -> list[list[str]]:
        return accuracy_table(metrics)

    # ----------------------------------------------------------------------------------- answering

    def _answers(
        self, model: Any, dataset: Any, samples: dict[str, Any], candidates: list[str] | None
    ) -> dict[str, list[str]]:
        """What the model says to a batch, and what it says as each baseline."""
        asked = samples["text_input"]
        said = {"prediction": self._predict(model, samples, candidates)}
        for baseline in self.cfg.baselines:
            if baseline == "blind":
                said[baseline] = self._predict(model, {"text_input": asked}, candidates)
            elif baseline == "other_image":
                other = {"image": samples["other_image"], "text_input": asked}
                said[baseline] = self._predict(model, other, candidates)
            elif baseline == "caption":
                captions = [dataset.true_caption(i) for i in samples["index"].tolist()]
                told = {"text_input": asked, "caption": captions}
                said[baseline] = self._predict(model, told, candidates)
        return said

    def _predict(
        self, model: Any, samples: Mapping[str, Any], candidates: list[str] | None
    ) -> list[str]:
        cfg = self.cfg
        asked = self._asked(samples["text_input"])
        if "caption" in samples:
            asked = [f"{c} {q}" for c, q in zip(samples["caption"], asked, strict=True)]
        options: dict[str, Any] = {} if candidates is None else {"answer_list": candidates}
        if cfg.length_penalty is not None:
            options["length_penalty"] = cfg.length_penalty
        return model.predict_answers(
            {**{k: samples[k] for k in ("image",) if k in samples}, "text_input": asked},
            num_beams=cfg.num_beams,
            inference_method=cfg.inference_method,
            max_len=cfg.max_len,
            min_len=cfg.min_len,
            num_ans_candidates=cfg.num_ans_candidates,
            prompt="{}",  # the text has its prompt already: one place for training and evaluation
            **options,
        )

    def _asked(self, questions: Sequence[str]) -> list[str]:
        prompt = self.cfg.prompt
        return [prompt.replace("{}", q) if prompt else q for q in questions]

    # -------------------------------------------------------------------------------------- checks

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


class OtherImages:
    """A dataset whose samples also have ``"other_image"``: the picture of the record half the split
    away, or of the next one after it that shows another picture.

    Raises:
        ConfigError: all records show the same picture.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.other(0)  # raises now rather than in a loading process

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        sample = self.dataset[index]
        other = self.dataset[self.other(index)]
        if sample is None or other is None:
            return None
        return {**sample, "other_image": other["image"]}

    def collate(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """The dataset's own batch, and the other pictures in a batch of theirs."""
        good = [dict(sample) for sample in samples if sample is not None]
        if not good:
            return {}
        others = [sample.pop("other_image") for sample in good]
        shifted = [{**s, "image": image} for s, image in zip(good, others, strict=True)]
        return {
            **self.dataset.collate(good),
            "other_image": self.dataset.collate(shifted)["image"],
        }

    def other(self, index: int) -> int:
        """The record whose picture record `index` gets; depends on nothing else."""
        n = len(self.dataset)
        own = self.dataset.annotation(index)["image_id"]
        for step in range(n):
            other = (index + n // 2 + step) % n
            if self.dataset.annotation(other)["image_id"] != own:
                return other
        raise ConfigError(
            f"run.baselines: 'other_image' needs two pictures, {split_name(self.dataset)} shows "
            "only one."
        )


def _example(annotation: Mapping[str, Any], answer: str) -> Row:
    texts = [a["answer"] if isinstance(a, Mapping) else a for a in annotation["answers"]]
    return {
        "id": f"{annotation['question_id']}: {annotation['question']}",
        "image": annotation["image"],
        "captions": [],
        "truth": [max(texts, key=texts.count)] if texts else [],
        "generated": answer,
        "attention": None,
    }
