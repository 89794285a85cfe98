#!/usr/bin/env bash
# Any published experiment by its name, which is that of its file in projects/blip2/paper:
#   bash run_scripts/paper.sh --list
#   bash run_scripts/paper.sh vqav2_zeroshot_flant5xl
#   bash run_scripts/paper.sh NAME [torchrun's arguments] [-- arguments of train.py or evaluate.py]
#   bash run_scripts/paper.sh retrieval_finetune_vitg --nproc-per-node=4 -- --options run.batch_size_train=56
# Without arguments for torchrun it starts a process on each GPU of this machine. --dry-run before the name
# shows the command instead of running it; what an experiment needs is at the top of its file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
FOLDER=projects/blip2/paper

usage() { sed -n '2,8s/^# \{0,1\}//p' run_scripts/paper.sh; }

list() {
  local file
  for file in "$FOLDER"/*.yaml; do
    printf '%-34s %s\n' "$(basename "$file" .yaml)" "$(sed -n '1s/^# *//p' "$file")"
  done
}

dry=false
case "${1:-}" in
  "" | -h | --help) usage; exit 0 ;;
  -l | --list) list; exit 0 ;;
  --dry-run) dry=true; shift ;;
esac
name="${1:-}"
file="$FOLDER/$name.yaml"
if [ ! -f "$file" ]; then
  echo "error: no published experiment '$name'. bash run_scripts/paper.sh --list shows them all." >&2
  exit 2
fi
shift

launch=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do launch+=("$1"); shift; done
if [ $# -gt 0 ]; then shift; fi
if [ ${#launch[@]} -eq 0 ]; then launch=(--nproc-per-node=gpu); fi

tool=train.py  # the file's own header says which
if grep -q "evaluate.py --cfg-path $file" "$file"; then tool=evaluate.py; fi

command=(torchrun "${launch[@]}" "$tool" --cfg-path "$file" "$@")
if $dry; then
  echo "${command[*]}"
  exit 0
fi
install_package ""
say "${command[*]}"
exec "$VENV/bin/${command[0]}" "${command[@]:1}"
