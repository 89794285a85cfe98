"""``python train.py --cfg-path project.yaml [--options a.b=c ...]``: same as `lavislite train`."""

import sys

from lavislite.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
