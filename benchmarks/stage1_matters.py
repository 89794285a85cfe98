"""Does stage 1 matter? Stage 2 with it and without it, as in Figure 5 of the BLIP-2 paper.

    python benchmarks/stage1_matters.py                   # 2 language models, 2 starts, 3 seeds
    python benchmarks/stage1_matters.py --vision random   # the tower has learned nothing
    python benchmarks/stage1_matters.py --steps 200 --every 50 --seeds 1 --options run.init_lr=5e-4

Trains projects/blip2/pretrain_stage2.yaml and pretrain_stage2_t5.yaml, once from the last run of
pretrain_stage1.yaml and once from a fresh Q-Former, and evaluates on unseen pictures as they go:
zero-shot VQA accuracy, and the share of objects named in captions that are true. The stage-1 run is
the same for all seeds; the seed decides the order of the pictures and all random numbers.

A tower other than the playground's (``--vision random``, or ``--options model.vision...``) needs a
stage 1 of its own, which is trained first, unless --stage1 names one.

Writes stage1_matters.png (the curves side by side), .json (all numbers) and .md (a table). Runs
that the JSON file holds already are not repeated: stop it and start it again as you like.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from facts import facts, facts_line

from lavislite.build import build_runner, train_project
from lavislite.common import catalog
from lavislite.common.config import load_config
from lavislite.common.evaluation import EvalContext, EvalResult
from lavislite.common.trained import last_run
from lavislite.models.vision.tiny import TinyViT
from lavislite.runners.history import read_log
from lavislite.tasks.pretrain import ImageTextPretrainTask, PretrainConfig
from lavislite.tasks.vqa import VQAConfig, VQATask

ROOT = Path(__file__).resolve().parents[1]
STAGE1 = ROOT / "projects" / "blip2" / "pretrain_stage1.yaml"
PROJECTS = {"OPT": "pretrain_stage2.yaml", "T5": "pretrain_stage2_t5.yaml"}
STARTS = {"with stage 1": "#3b7dd8", "without": "#e07b39"}
METRICS = {
    "playground_vqa/test/acc": "zero-shot VQA accuracy %",
    "playground_caption/test/objects_true": "objects in captions that are true %",
}
PROMPT = "Question: {} Answer:"

Run = dict[str, Any]
Curve = list[tuple[float, float]]


@catalog.tasks.register("stage1_matters")
class Stage1MattersTask(ImageTextPretrainTask):
    """Pre-training that is watched on captions and on questions, on the first so many of each."""

    Config: ClassVar[type[PretrainConfig]] = PretrainConfig
    name = "stage1_matters"
    evaluations = (*ImageTextPretrainTask.evaluations, "vqa")
    limits: ClassVar[dict[str, int]] = {}  # how a split is scored -> how many records are

    def __init__(self, cfg: PretrainConfig) -> None:
        super().__init__(cfg)
        self.vqa = VQATask(VQAConfig(prompt=PROMPT, num_beams=1, max_len=5))

    def evaluate(self, model: Any, dataset: Any, ctx: EvalContext) -> EvalResult:
        most = self.limits.get(dataset.evaluation)
        if most is not None and ctx.limit_batches is None:
            size = min(ctx.batch_size, most)
            ctx = replace(ctx, batch_size=size, limit_batches=-(-most // size))
        if dataset.evaluation == "vqa":
            return self.vqa.evaluate(model, dataset, ctx)
        return super().evaluate(model, dataset, ctx)


# ---------------------------------------------------------------------------------------- running


def vision_options(args: argparse.Namespace) -> list[str]:
    """What every run, stage 1 among them, is told about the tower."""
    chosen = [option for option in args.options if option.startswith("model.vision.")]
    if args.vision == "random":
        path = args.runs.resolve() / "random_tower.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            TinyViT(weights="none").save(path)
        chosen.insert(0, f"model.vision.weights={path}")
    return chosen


def stage1_run(args: argparse.Namespace) -> Path:
    """The folder of the stage-1 run to start from, trained now if the tower is another one."""
    if args.stage1:
        return args.stage1.resolve()
    tower = vision_options(args)
    if not tower:
        return last_run(STAGE1)
    folder = args.runs.resolve() / "stage1"
    done = folder / STAGE1.stem / "latest"
    if not (done / "results.json").exists():
        options = [*tower, f"run.output_dir={folder}", *args.stage1_options]
        train_project(load_config(STAGE1, options), STAGE1)
    return done.resolve()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What two runs must share to be compared."""
    names = ("steps", "every", "questions", "pictures", "vision", "options")
    return {name: getattr(args, name) for name in names}


def train(language: str, start: str, seed: int, stage1: Path, args: argparse.Namespace) -> Run:
    """One stage-2 run and its curves."""
    project = STAGE1.parent / PROJECTS[language]
    options = [
        f"model.pretrained={stage1 if start == 'with stage 1' else 'null'}",
        "datasets.playground_vqa.ratio=0",  # asked about, not learned from
        "run.task=stage1_matters",
        f"run.max_steps={args.steps}",
        f"run.eval_every_steps={args.every}",
        f"run.seed={seed}",
        f"run.output_dir={args.runs.resolve()}",
        "run.eval_at_start=true",
        "run.valid_splits=[test]",
        "run.test_splits=[]",
        "run.report=false",
        *vision_options(args),
        *args.options,
    ]
    runner = build_runner(load_config(project, options), project=project)
    runner.train()
    found = read_log(runner.log.path).evaluated
    return {
        **{"language": language, "start": start, "seed": seed, "settings": settings_of(args)},
        "curves": {metric: found[metric] for metric in METRICS},
    }


def all_runs(args: argparse.Namespace, path: Path) -> list[Run]:
    """Every run, those of the file `path` as they are there; the file grows with each new one."""
    known: list[Run] = []
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))["runs"]
    settings = settings_of(args)
    runs = [run for run in known if run["settings"] == settings]
    stage1 = stage1_run(args)
    for seed in range(args.seeds):
        for language in PROJECTS:
            for start in STARTS:
                if any(
                    (run["language"], run["start"], run["seed"]) == (language, start, seed)
                    for run in runs
                ):
                    continue
                print(f"\n== {language}, {start}, seed {seed}", flush=True)
                runs.append(train(language, start, seed, stage1, args))
                content = {"settings": settings, **facts(args.threads), "runs": runs}
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [run for run in runs if run["seed"] < args.seeds]


# ---------------------------------------------------------------------------------------- showing


def curves_of(runs: Sequence[Run], language: str, start: str, metric: str) -> list[Curve]:
    """One curve per seed."""
    chosen = [run for run in runs if (run["language"], run["start"]) == (language, start)]
    return [[(step, value) for step, value in run["curves"][metric]] for run in chosen]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over the seeds at each step."""
    points = zip(*curves, strict=True)
    return [(at[0][0], statistics.fmean(value for _, value in at)) for at in points]


def draw(runs: Sequence[Run], path: Path) -> None:
    """A column per language model, a row per metric: means, and each seed faintly."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(METRICS), len(PROJECTS), sharex=True, sharey="row")
    for row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for axis, language in zip(row, PROJECTS, strict=True):
            for start, colour in STARTS.items():
                curves = curves_of(runs, language, start, metric)
                for curve in curves:
                    axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=1)
                mean = mean_curve(curves)
                axis.plot(*zip(*mean, strict=True), color=colour, linewidth=2.2, label=start)
            axis.grid(alpha=0.3)
            axis.set_title(f"{language}: {label}", loc="left", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("steps of stage 2")
    axes[0][0].legend(fontsize=9)
    figure.savefig(path)


def page(runs: Sequence[Run], args: argparse.Namespace) -> str:
    """The numbers behind the figure: mean over the seeds, lowest and highest in brackets."""
    lines = [
        "# Stage 2 with and without stage 1\n",
        f"Vision tower: {args.vision}. {args.seeds} seeds: mean (lowest to highest). The first "
        f"{args.questions} questions and {args.pictures} pictures of the test split.",
    ]
    if args.options:
        lines.append(f"Options: `{' '.join(args.options)}`.")
    for metric, label in METRICS.items():
        steps = [step for step, _ in curves_of(runs, "OPT", "without", metric)[0]]
        lines += [
            f"\n{label}\n",
            f"| steps | {' | '.join(f'{step:g}' for step in steps)} |",
            "|---" * (len(steps) + 1) + "|",
        ]
        for language in PROJECTS:
            for start in STARTS:
                curves = curves_of(runs, language, start, metric)
                columns = [[value for _, value in at] for at in zip(*curves, strict=True)]
                cells = [f"{statistics.fmean(c):.1f} ({min(c):.0f}-{max(c):.0f})" for c in columns]
                lines.append(f"| {language}, {start} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"\n{facts_line(facts(args.threads))}\n"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800, help="of stage 2")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--questions", type=int, default=600, help="asked at each evaluation")
    parser.add_argument("--pictures", type=int, default=200, help="described at each evaluation")
    parser.add_argument(
        "--vision", choices=("playground", "random"), default="playground",
        help="the playground's tower, trained on labels, or one of random weights",
    )  # fmt: skip
    parser.add_argument("--options", nargs="+", default=[], help="a.b=c, for every run")
    parser.add_argument("--stage1", type=Path, help="folder of the stage-1 run to start from")
    parser.add_argument("--stage1-options", nargs="+", default=[], help="if it is trained here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default output/<name>")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    name = "stage1_matters" + ("" if args.vision == "playground" else f"_{args.vision}")
    args.runs = args.runs or Path("output", name)
    for folder in (args.out, args.runs):
        folder.mkdir(parents=True, exist_ok=True)
    Stage1MattersTask.limits = {"vqa": args.questions, "caption": args.pictures}
    runs = all_runs(args, args.out / f"{name}.json")
    draw(runs, args.out / f"{name}.png")
    text = page(runs, args)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.out / name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
