#!/usr/bin/env bash
# Search a folder of videos with a sentence. Makes the environment, downloads the encoders that are missing, extracts the
# features of new and changed videos and indexes them; without a sentence it serves a web page that plays the moments:
#   bash do_search.sh VIDEO_FOLDER "a dog jumps into the water"
#   bash do_search.sh VIDEO_FOLDER
#   bash do_search.sh VIDEO_FOLDER "a person opens the fridge" --eval_ckpt checkpoints/charades.ckpt
# Without a checkpoint by zero-shot CLIP, with one by both. Further flags are those of method/search.py.
# Environment: PYTHON sets the interpreter, ROOT_PATH the folder of dataset/ and checkpoints/.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell: sh do_search.sh
set -euo pipefail
# shellcheck source=utils/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/environment.sh"
python="$(find_python --video)"

if [[ $# -gt 0 && "$1" != -* ]]; then
  exec "$python" "$repository/utils/search_videos.py" "$1" --root_path "${ROOT_PATH:-$repository}" "${@:2}"
fi
exec "$python" "$repository/utils/search_videos.py" "$@"
