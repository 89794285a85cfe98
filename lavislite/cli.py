"""The command line: ``lavislite train | evaluate | score | validate | estimate | convert ...``.

Nothing heavy is imported before a command needs it, so ``--help`` and the listings are instant.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavislite import __version__
from lavislite.cli_options import add_config, add_convert, add_download, add_dry_run, add_estimate
from lavislite.common.errors import UserError
from lavislite.score_report import add_score_arguments

EXAMPLES = """\
examples:
  lavislite train --cfg-path projects/blip2/pretrain_stage1.yaml
  lavislite train --cfg-path my.yaml --options run.batch_size_train=32 model.vision.name=timm:vit_base_patch16_224
  lavislite train --cfg-path my.yaml --dry-run              one step and one evaluation batch of everything
  lavislite train --cfg-path my.yaml --options run.resume=auto
  torchrun --nproc-per-node=8 train.py --cfg-path my.yaml
  lavislite evaluate --cfg-path my.yaml --checkpoint output/my/latest
  lavislite validate --cfg-path my.yaml                     configuration and annotation files, no model
  lavislite estimate my.yaml --gpus 16 --memory 40          what fits, with which strategy; FLOPs, hours
  lavislite score vqa --predictions answers.json --annotations v2_mscoco_val2014_annotations.json
  lavislite convert output/my/latest exported --to hf       for transformers and vLLM
  lavislite download coco_caption --split val               size and licence first, then fetch and verify
  lavislite models 'blip2*'
"""  # noqa: E501

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # full, over quota, read-only


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: done. 2: the user can put something right, the message says what. 130, 143: interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return args.command(args) or 0
    except UserError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f" ({error.filename})" if error.filename else ""
        _complain(UserError(f"Cannot write{place}: {error.strerror}. What was saved is complete."))
        return 2


def _complain(error: UserError) -> None:
    """Rank 0 speaks for all; another rank speaks up only when the error is its own."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == "0":
        print(f"error: {error}", file=sys.stderr)
    elif getattr(error, "own_rank", False):
        print(f"[rank {rank}] error: {error}", file=sys.stderr)


# ---------------------------------------------------------------------------------------- commands


def train(args: argparse.Namespace) -> int:
    cfg = _load(args)
    return _run(cfg, args, train=not cfg.run.evaluate)


def evaluate(args: argparse.Namespace) -> int:
    if args.cfg_path is None:
        args.cfg_path = _config_of(args.checkpoint)
    return _run(_load(args), args, train=False)


def validate(args: argparse.Namespace) -> int:
    from lavislite.validate import validate_project

    cfg = _load(args)
    for line in validate_project(cfg):
        print(line)
    print(f"{args.cfg_path}: ok")
    return 0


def score_results(args: argparse.Namespace) -> int:
    from lavislite.score import run

    return run(args)


def estimate_needs(args: argparse.Namespace) -> int:
    from lavislite.estimate.command import run

    return run(args)


def convert_model(args: argparse.Namespace) -> int:
    from lavislite.common.userdir import import_user_dir
    from lavislite.convert import convert

    if args.user_dir is not None:
        import_user_dir(args.user_dir)
    convert(
        args.source,
        args.dest,
        args.to,
        arch=args.arch,
        model_type=args.model_type,
        options=args.options,
        dtype=args.dtype,
        verify=args.verify,
    )
    return 0


def list_models(args: argparse.Namespace) -> int:
    from lavislite.zoo import model_zoo

    return _list(model_zoo, args.pattern, "model")


def list_datasets(args: argparse.Namespace) -> int:
    from lavislite.zoo import dataset_zoo

    return _list(dataset_zoo, args.pattern, "dataset")


def download(args: argparse.Namespace) -> int:
    from lavislite.download.command import run

    return run(args)


def _list(zoo: Any, pattern: str, kind: str) -> int:
    from fnmatch import fnmatch

    from lavislite.common.registry import did_you_mean

    rows = [(name, types) for name, types in zoo if fnmatch(name, pattern)]
    if not rows:
        raise UserError(f"No {kind} matches '{pattern}'.{did_you_mean(pattern, zoo.names())}")
    width = max(len(name) for name, _ in rows) + 2
    for name, types in rows:
        print(f"{name:<{width}}{', '.join(types)}".rstrip())
    return 0


def _run(cfg: Any, args: argparse.Namespace, *, train: bool) -> int:
    from lavislite.common import distributed
    from lavislite.common.allocator import keep_memory

    run = cfg.run
    distributed.init_distributed(run.dist_timeout_minutes, run.device, run.dist_warn_seconds)
    with distributed.failing_together():
        if distributed.resolve_device(run.device).type == "cpu":
            keep_memory()
        _build_and_run(cfg, args, train)
    distributed.shutdown()
    return 0


def _build_and_run(cfg: Any, args: argparse.Namespace, train: bool) -> None:
    import shutil

    from lavislite.build import build_runner
    from lavislite.common import distributed
    from lavislite.playground import keep_result

    runner = build_runner(
        cfg,
        project=_project_name(args.cfg_path),
        train=train,
        dry_run=args.dry_run,
        checkpoint=getattr(args, "checkpoint", None),
    )
    try:
        if args.dry_run:
            runner.dry_run()
            print("dry run: ok") if distributed.is_main() else None
        elif train:
            runner.train()
        else:
            runner.evaluate()
    finally:
        if args.dry_run and distributed.is_main():
            shutil.rmtree(runner.run_dir, ignore_errors=True)
    if train and not args.dry_run:
        keep_result(cfg, _project_name(args.cfg_path), runner)


def _load(args: argparse.Namespace) -> Any:
    from lavislite.common.config import load_config

    return load_config(args.cfg_path, args.options, args.user_dir)


def _project_name(cfg_path: str) -> str:
    """The project a file belongs to; a configuration saved with a run belongs to the run's."""
    path = Path(cfg_path).resolve()
    folders = [path.parent, path.parent.parent.parent]  # <run> or <run>/checkpoints/step_<n>
    run_dir = next((folder for folder in folders if (folder / "run.json").is_file()), None)
    if path.name == "config.yaml" and run_dir is not None:
        return run_dir.parent.name
    return path.stem


def _config_of(checkpoint: str | None) -> str:
    """The configuration saved beside a checkpoint: in its folder or one of those above."""
    if checkpoint is None:
        raise UserError("evaluate needs --cfg-path, or --checkpoint with a run folder")
    from lavislite.common.io import require_path

    path = require_path(checkpoint, "checkpoint")
    for folder in (path, *path.parents[:3]):
        if (folder / "config.yaml").is_file():
            return str(folder / "config.yaml")
    raise UserError(f"No config.yaml beside {checkpoint}: name one with --cfg-path")


# ------------------------------------------------------------------------------------------ parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lavislite",
        description="Bridge any frozen vision backbone and any frozen language model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lavislite {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    sub = add("train", train, "train, validate, keep the best, report")
    add_config(sub, required=True)
    add_dry_run(sub)
    sub = add("evaluate", evaluate, "score a checkpoint on the validation and test splits")
    add_config(sub, required=False)
    add_dry_run(sub)
    sub.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="run folder, checkpoint folder or weight file; default: model.pretrained",
    )
    sub = add("validate", validate, "check configuration and annotation files, build no model")
    add_config(sub, required=True)
    add_estimate(add("estimate", estimate_needs, "parameters, FLOPs, memory and hours of a recipe"))
    add_score_arguments(add("score", score_results, "the official figures of a result file"))
    add_convert(add("convert", convert_model, "write a model in another format, and check it"))
    add_download(add("download", download, "fetch a data set, resume, unpack, verify"))
    for name, command in (("models", list_models), ("datasets", list_datasets)):
        sub = add(name, command, f"list {name} and their types")
        sub.add_argument("pattern", nargs="?", default="*", help="shell wildcards, e.g. 'blip2*'")
    return parser


if __name__ == "__main__":
    sys.exit(main())
