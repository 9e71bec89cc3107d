#!/usr/bin/env bash
# Train A3PRVR on Charades-STA, or evaluate a checkpoint on it.
# The published values are in configs/charades.yaml; flags given here override them:
#   bash do_charades.sh
#   bash do_charades.sh --n_epoch 2 --device -1
#   bash do_charades.sh --recipe plus    a recipe of configs/recipes/ on top of the published values
#   bash do_charades.sh --only_eval --eval_ckpt checkpoints/charades.ckpt
#   bash do_charades.sh --description first --resume auto    start the run, or resume it
#   SEEDS="1 2 3" bash do_charades.sh --resume auto    a run for each seed, then their mean
#   NEG_QUERY_LOSS=both bash do_charades.sh
# Environment: PYTHON sets the interpreter, ROOT_PATH the folder of dataset/, checkpoints/ and results/, NPROC the number
# of processes, one GPU each. NEG_QUERY_LOSS=both, action or object trains with edited captions as hard negative
# queries, which needs checkpoints/roberta-large: python utils/download_roberta.py
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell: sh do_charades.sh
set -euo pipefail
# shellcheck source=utils/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/environment.sh"
python="$(find_python)"

start_training "$python" --dataset_name charades --root_path "${ROOT_PATH:-$repository}" \
  ${NEG_QUERY_LOSS:+--neg_query_loss "$NEG_QUERY_LOSS"} "$@"
