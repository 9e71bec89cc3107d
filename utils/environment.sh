# shellcheck shell=bash
# Sourced by the launchers. Sets `repository`, this repository's folder, and defines `find_python` and `start_training`.

unset CDPATH # with it `cd` may go elsewhere, and prints where
repository="$(cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Print the path of a Python that has the packages: PYTHON where it is set, else the active one (conda, venv), else .venv
# in the repository, which is made with that Python when need be. Flags: see utils/environment.py.
find_python() {
  local candidate base candidates=(python python3 python3.13 python3.12 python3.11 python3.10)
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if base="$("$candidate" -c 'import sys; sys.version_info >= (3, 10) or sys.exit(1); print(sys.executable)' 2>/dev/null)"; then
      "$base" "$repository/utils/environment.py" "$@"
      return
    fi
  done
  candidate="${PYTHON:-python3}"
  echo "error: expected Python 3.10 or newer, found $candidate: $("$candidate" --version 2>&1 | tail -n 1)" >&2
  return 2
}

# Become the training with this Python and these flags, of NPROC processes where that is set.
start_training() {
  local python="$1"
  shift
  exec "$python" ${NPROC:+-m torch.distributed.run --standalone --nproc_per_node "$NPROC"} \
    "$repository/method/train.py" "$@"
}

if [[ -n "${NPROC:-}" ]]; then
  if [[ ! "$NPROC" =~ ^[1-9][0-9]{0,2}$ ]]; then
    echo "error: NPROC=$NPROC: expected how many processes train together, 1 to 999" >&2
    exit 2
  fi
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as torchrun sets it, but without its banner
fi
