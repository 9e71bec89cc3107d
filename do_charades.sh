#!/usr/bin/env bash
# Train A3PRVR on Charades-STA, or evaluate a checkpoint on it. Flags given here come last and win:
#   bash do_charades.sh
#   bash do_charades.sh --n_epoch 2 --device -1
#   bash do_charades.sh --only_eval --eval_ckpt checkpoints/charades.ckpt
#   NEG_QUERY_LOSS=both bash do_charades.sh
# Environment: PYTHON chooses the interpreter, ROOT_PATH the folder of dataset/, checkpoints/ and results/, NPROC how many
# processes train together, a GPU each.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/utils/environment.sh"
python="$(find_python)"

# Edited captions as hard negative queries: both, action or object switches them on; empty, they are off and the
# --neg_ flags below do nothing. They need checkpoints/roberta-large: python utils/download_roberta.py
neg_query_loss="${NEG_QUERY_LOSS:-}"

# Dimensions of the features and paths stand in configs/charades.yaml.
start_training "$python" \
  --dataset_name charades \
  --root_path "${ROOT_PATH:-$repository}" \
  --exp_id a3prvr \
  --visual_feature i3d \
  --best_frame_loss \
  --phrase_action_branch \
  --flow_feat \
  --cross_branch_fusion \
  --deformable_attn \
  --deformable_heads 8 \
  --deformable_offset_groups 8 \
  --deformable_offset_num 8 \
  --deformable_offset_scale 12 \
  --margin 0.2 \
  --bsz 128 \
  --lr 2.5e-4 \
  --n_epoch 100 \
  --seed 666 \
  ${neg_query_loss:+--neg_query_loss "$neg_query_loss"} \
  --neg_query_loss_weight 0.005 \
  --neg_action_num 8 \
  --neg_object_num 8 \
  --neg_query_loss_branch both \
  --neg_loss_label_smoothing 0.2 \
  "$@"
