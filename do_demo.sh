#!/usr/bin/env bash
# See A3PRVR learn in about two minutes on a CPU, without downloads: makes a small dataset, trains on it and evaluates.
# Flags given here come last and win:
#   bash do_demo.sh
#   bash do_demo.sh --neg_query_loss both      edited captions, with a small RoBERTa that the demo makes
#   bash do_demo.sh --no_cross_branch_fusion   an ablation
# Data and runs go to demo/. Environment: PYTHON chooses the interpreter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/utils/environment.sh"
python="$(find_python)"

# Token features of the edited captions have to come from the same encoder as those of the captions themselves.
world="$repository/demo/plain"
encoder=()
if [[ " $* " == *" --neg_query_loss"* ]]; then
  world="$repository/demo/edited_captions"
  encoder=(--tiny_roberta)
fi
"$python" "$repository/utils/make_demo_dataset.py" --out "$world" ${encoder[@]+"${encoder[@]}"}

run="$(date +%Y-%m-%d_%H-%M-%S)"
"$python" "$repository/method/train.py" \
  --dataset_name demo \
  --root_path "$world" \
  --exp_id a3prvr \
  --description "$run" \
  --best_frame_loss \
  --phrase_action_branch \
  --flow_feat \
  --cross_branch_fusion \
  --deformable_attn \
  --hidden_size 64 \
  --initializer_range 0.05 \
  --bsz 32 \
  --lr 1e-3 \
  --n_epoch 18 \
  --hard_negative_start_epoch 8 \
  --num_workers 1 \
  "$@"

# Flags given here may have sent the run elsewhere; train.py has said where.
metrics="$world/results/demo/a3prvr/$run/metrics.json"
if [[ -f "$metrics" ]]; then
  "$python" "$repository/utils/print_metrics.py" "$metrics"
fi
