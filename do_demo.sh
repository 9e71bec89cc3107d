#!/usr/bin/env bash
# From videos to the moment on a CPU in about two minutes, without downloads: writes small videos of moving shapes,
# extracts their features, adds sentences, trains A3PRVR, evaluates, and searches with a sentence. Flags given here
# override the defaults:
#   bash do_demo.sh
#   bash do_demo.sh --neg_query_loss both      edited captions as hard negative queries
#   bash do_demo.sh --no_cross_branch_fusion   an ablation
#   bash do_demo.sh --recipe plus              a recipe of configs/recipes/
#   SEEDS="1 2 3" bash do_demo.sh              a run for each seed, then their mean
# Videos, data and runs go to demo/; what is there is not made again. Environment: PYTHON sets the interpreter, NPROC the
# number of processes.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell: sh do_demo.sh
set -euo pipefail
# shellcheck source=utils/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/environment.sh"
python="$(find_python --video)"

world="$repository/demo"
"$python" "$repository/utils/make_demo_dataset.py" --out "$world"

run="$(date +%Y-%m-%d_%H-%M-%S)"
if [[ -n "${SEEDS:-}" ]]; then run=""; fi # each seed has a run of its own
(start_training "$python" --dataset_name demo --root_path "$world" ${run:+--description "$run"} --num_workers 1 --report "$@")

# Flags may have changed the folder of the run, which train.py logs.
metrics="$world/results/demo/a3prvr/$run/metrics.json"
if [[ -f "$metrics" ]]; then
  "$python" "$repository/utils/print_metrics.py" "$metrics"
  printf '\n'
  "$python" "$repository/method/search.py" --eval_ckpt "${metrics%/*}/model.ckpt" --topk 3 --quiet "A red circle advances."
  printf '\nSearch more: %s method/search.py --eval_ckpt %s\n' "$python" "${metrics%/*}/model.ckpt"
  printf 'Web page:    the same with --serve --video_dir %s\n' "$world/videos"
  printf 'Report:      %s\n' "${metrics%/*}/report/index.html"
  printf 'TensorBoard: %s -m tensorboard.main --logdir %s\n' "$python" "$world/results"
fi
