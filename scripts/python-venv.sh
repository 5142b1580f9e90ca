#!/usr/bin/env bash
# Makes a virtual environment and installs requirement files into it; a half-made one is made anew.
# usage: scripts/python-venv.sh DIRECTORY REQUIREMENTS…
set -euo pipefail

dir=$1
shift
python=${PYTHON:-python3}
here=$(dirname "$0")

command -v "$python" >/dev/null 2>&1 || "$here/apt-install.sh" "$python=python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old: Python 3.11 or newer is needed. Name another with make PYTHON=python3.x." >&2
  exit 1
}
# Debian keeps the module that makes environments in a package of its own.
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  "$here/apt-install.sh" =python3-venv
  "$python" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "error: $python cannot make virtual environments. Install python3-venv and run make again." >&2
    exit 1
  }
fi

if [ ! -x "$dir/bin/python" ] || ! "$dir/bin/python" -c 'import pip' 2>/dev/null; then
  rm -rf "$dir"
  "$python" -m venv "$dir"
fi
for file in "$@"; do
  echo "==> installing $file into $dir"
  "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$file" || {
    echo "error: pip could not install $file (its lines are above). Is a package index reachable?" >&2
    exit 1
  }
done
