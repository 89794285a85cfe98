"""The options of the commands, but for those of `lavislite score`: see `score_report`."""

from __future__ import annotations

import argparse


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="run, checkpoint or model folder, LAVIS .pth, or folder of Hugging Face"
    )
    parser.add_argument("dest", help="new folder; for lavis a new file *.pth")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf, lavis or lavislite")
    parser.add_argument("--arch", metavar="NAME", help="the model, when the source does not say")
    parser.add_argument("--model-type", metavar="TYPE", help="its type, see: lavislite models")
    parser.add_argument("--dtype", metavar="TYPE", help="fp32, bf16 or fp16; default: as it is")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not load what was written"
    )
    add_options(parser)


def add_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the data set; left out: lists them")
    parser.add_argument("--part", default="all", metavar="PART", help="annotations, images or all")
    parser.add_argument("--split", metavar="SPLIT", help="only what this split needs")
    parser.add_argument(
        "--type", default="default", help="of the data set's types; see: lavislite datasets"
    )
    parser.add_argument("--to", metavar="FOLDER", help="default: the cache folder")
    parser.add_argument("--yes", action="store_true", help="agree to more than 1 GB")
    parser.add_argument("--dry-run", action="store_true", help="show what would be fetched")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="connections; default 4, for lists of pictures 32"
    )
    parser.add_argument("--keep-archives", action="store_true", help="in FOLDER/.downloads")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="of a list of pictures only the first N rows"
    )


def add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cfg_path", metavar="YAML", help="project file")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="of each; default: what the GPU has"
    )
    parser.add_argument(
        "--gpu", default="a100-40g", metavar="NAME", help="a100-40g (default), a100-80g, h100, ..."
    )
    parser.add_argument(
        "--mfu", type=float, default=0.3, metavar="PART", help="of the GPU's peak; default 0.3"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="training samples, when the recipe counts epochs"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    add_options(parser)


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--cfg-path", required=required, metavar="YAML", help="project file")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override: run.max_epoch=2 'run.valid_splits=[val,test]' model.pretrained=null",
    )
    parser.add_argument(
        "--user-dir", metavar="PATH", help="file or folder with your own registered components"
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, take one step and one evaluation batch, report sizes, keep nothing",
    )
