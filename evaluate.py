"""``python evaluate.py --cfg-path my.yaml [--checkpoint RUN]``: same as `lavislite evaluate`."""

import sys

from lavislite.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
