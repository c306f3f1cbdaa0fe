#!/bin/sh
# Make .venv with exactly what requirements.lock names and the project itself in it. `make` calls this.
set -eu

fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

cd -- "$(dirname -- "$0")/.."
python=${PYTHON:-python3}
venv=.venv
[ -w . ] || fail "$(pwd) is not writable for $(id -un): clone the project to a place of your own"
command -v git >/dev/null || fail "git is missing: apt install git"
command -v "$python" >/dev/null || fail "$python is missing: apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: needs 3.11 or newer; set PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments: apt install python3-venv"

# An interrupted run leaves half a venv.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"

# Everything is called as `python -m`: a script's first line breaks where a folder has a space in its name.
pip() { "$venv/bin/python" -m pip "$@"; }
uv() { UV_PYTHON_DOWNLOADS=never "$venv/bin/python" -m uv "$@"; }
# uv does not compile unless told so, and where PYTHONDONTWRITEBYTECODE is set nothing else ever would.
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
# A user without a home of their own has no cache either.
mkdir -p "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/uv}" 2>/dev/null || export UV_NO_CACHE=1

sed -n '/^uv==/,/[^\\]$/p' requirements.lock > "$venv/uv.lock"
if pip install -q --require-hashes --no-deps -r "$venv/uv.lock" &&
  uv pip install -q --python "$venv/bin/python" --require-hashes -r requirements.lock; then
  uv pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e .
else
  echo "setup: uv does not work here; pip does it more slowly" >&2
  pip install -q --require-hashes -r requirements.lock
  pip install -q --no-deps --no-build-isolation -e .
fi
"$venv/bin/python" -c 'import lych_checkpoint'
touch "$venv/.ready"
