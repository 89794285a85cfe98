#!/usr/bin/env bash
# A training job for SLURM that survives time limits, preemption and lost nodes:
#   sbatch --nodes=2 run_scripts/slurm.sh projects/blip2/paper/pretrain_stage1_vitg.yaml [options ...]
# Ranks, world size and the first node come from srun. Two minutes before the time limit the run
# finishes its step and saves; then the job queues again and continues in the same run folder.
#SBATCH --job-name=lavislite
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=10
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

project=${1:?"usage: sbatch run_scripts/slurm.sh PROJECT.yaml [KEY=VALUE ...]"}
shift
srun --kill-on-bad-exit=1 python train.py --cfg-path "$project" \
  --options run.save_every_minutes=20 "$@"
code=$?
if [ "$code" -eq 143 ]; then # saved after SIGTERM, and not finished
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
