"""``lavislite estimate``."""

from __future__ import annotations

import argparse
import json

from lavislite.common.config import load_config
from lavislite.common.errors import ConfigError
from lavislite.estimate.estimate import estimate
from lavislite.estimate.gpus import find_gpu
from lavislite.estimate.report import lines


def run(args: argparse.Namespace) -> int:
    """Print the estimate that `args` (see `cli_options.add_estimate`) asks for.

    Raises:
        UserError: the recipe or an option is wrong.
    """
    if args.gpus < 1:
        raise ConfigError(f"--gpus: expected 1 or more, saw {args.gpus}")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu: expected a fraction up to 1, saw {args.mfu:g}")
    gpu = find_gpu(args.gpu, args.memory)
    cfg = load_config(args.cfg_path, args.options, args.user_dir)
    found = estimate(cfg, gpus=args.gpus, gpu=gpu, mfu=args.mfu, samples=args.samples)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print("\n".join(lines(found)))
    return 0
