# shellcheck shell=bash
# Sourced by the launch scripts. Sets `repository`, the repository folder, and defines `find_python` and `start_training`.

unset CDPATH # which can redirect `cd` and makes it print
repository="$(cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Print the path of a Python that has the packages: PYTHON if set, else the active one (conda, venv), else .venv in the
# repository, which is created if necessary. For flags see utils/environment.py.
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

# Replace this process by a training with a Python and flags, in NPROC processes if that is set; if SEEDS is set, by one
# training after another with each of these seeds.
start_training() {
  local python="$1"
  shift
  if [[ -n "${SEEDS:-}" ]]; then
    exec "$python" "$repository/utils/train_seeds.py" --seeds="$SEEDS" ${NPROC:+--nproc_per_node "$NPROC"} -- "$@"
  fi
  exec "$python" ${NPROC:+-m torch.distributed.run --standalone --nproc_per_node "$NPROC"} \
    "$repository/method/train.py" "$@"
}

if [[ -n "${NPROC:-}" ]]; then
  if [[ ! "$NPROC" =~ ^[1-9][0-9]{0,2}$ ]]; then
    echo "error: NPROC=$NPROC: expected a number of processes, 1 to 999" >&2
    exit 2
  fi
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as torchrun does, without its warning
fi
