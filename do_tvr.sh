#!/usr/bin/env bash
# Train A3PRVR on TVR, or evaluate a checkpoint on it.
# The published values are in configs/tvr.yaml; flags given here override them:
#   bash do_tvr.sh
#   bash do_tvr.sh --n_epoch 2 --device -1
#   bash do_tvr.sh --recipe plus    a recipe of configs/recipes/ on top of the published values
#   bash do_tvr.sh --only_eval --eval_ckpt checkpoints/tvr.ckpt
#   bash do_tvr.sh --description first --resume auto    start the run, or resume it
# Environment: PYTHON sets the interpreter, ROOT_PATH the folder of dataset/, checkpoints/ and results/, NPROC the number
# of processes, one GPU each. NEG_QUERY_LOSS=both, action or object trains with edited captions as hard negative
# queries. The text encoder of the released 768-wide features was never published; this approximates it:
# python utils/tune_text_encoder.py tvr
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell: sh do_tvr.sh
set -euo pipefail
# shellcheck source=utils/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/environment.sh"
python="$(find_python)"

start_training "$python" --dataset_name tvr --root_path "${ROOT_PATH:-$repository}" \
  ${NEG_QUERY_LOSS:+--neg_query_loss "$NEG_QUERY_LOSS"} "$@"
