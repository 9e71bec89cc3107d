#!/usr/bin/env bash
# All checks of a change: lint, format, types, tests. Further arguments are passed to pytest:
#   bash tests/run.sh
#   bash tests/run.sh -k fusion
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../utils/environment.sh"
python="$(find_python --dev)"
cd "$repository"
export OMP_WAIT_POLICY=passive # idle threads of PyTorch sleep: every test process has some

failed=()
section() {
  local name="$1"
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
}

section "ruff check" "$python" -m ruff check .
section "ruff format" "$python" -m ruff format --check .
section "mypy" "$python" -m mypy
section "shellcheck" "$(dirname "$python")/shellcheck" ./*.sh utils/*.sh tests/run.sh .ci/run
section "pytest" "$python" -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile "$@"

if (( ${#failed[@]} )); then
  printf '\nfailed: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nall good\n'
