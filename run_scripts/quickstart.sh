#!/usr/bin/env bash
# From a fresh clone to a trained BLIP-2 stage 1, on a laptop, with no data and no weights:
#   bash run_scripts/quickstart.sh [--options run.max_steps=50 ...]
# Everything after the script's name goes to train.py. A second run reuses the environment, the
# generated data and the frozen vision transformer.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

install_package ""
say "Training stage 1: python train.py --cfg-path projects/blip2/pretrain_stage1.yaml $*"
exec "$VENV/bin/python" train.py --cfg-path projects/blip2/pretrain_stage1.yaml "$@"
