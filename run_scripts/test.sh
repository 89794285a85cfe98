#!/usr/bin/env bash
# Lint, types and the test suite, in an environment made for it:
#   bash run_scripts/test.sh [pytest arguments ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

install_package "[test]"
say "Lint";  "$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "Types"; "$VENV/bin/mypy" lavislite
say "Tests"; exec "$VENV/bin/python" -m pytest -q -n "${PYTEST_WORKERS:-2}" "$@"
