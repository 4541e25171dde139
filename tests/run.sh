#!/bin/sh
# Set up and run the whole test suite: a virtual environment in .venv, then lint, types and tests.
# Usage: sh tests/run.sh [pytest arguments]; PYTHON=python3.12 picks an interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A file is one process's business: its tests share servers.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
