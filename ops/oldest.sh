#!/bin/sh
# Run pytest with the oldest releases that pyproject.toml allows (ops/oldest.lock), in a venv of their own inside .venv.
set -eu
cd -- "$(dirname -- "$0")/.."
place=.venv/oldest
uv() { .venv/bin/python -m uv "$@"; }
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
mkdir -p "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/uv}" 2>/dev/null || export UV_NO_CACHE=1

rm -rf "$place"
uv venv -q --python .venv/bin/python "$place"
uv pip install -q --python "$place/bin/python" --require-hashes -r ops/oldest.lock
uv pip install -q --python "$place/bin/python" --no-deps --no-build-isolation -e .
LYCH_LEAK_ROUNDS="${LYCH_LEAK_ROUNDS:-30}" exec "$place/bin/python" -m pytest -p no:cacheprovider "$@"
