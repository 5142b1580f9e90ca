#!/usr/bin/env bash
# Installs Debian packages whose commands are missing, and says in one sentence what to do where it cannot.
# usage: scripts/apt-install.sh COMMAND=PACKAGE[,PACKAGE…]…   (a bare =PACKAGE is always asked for)
set -euo pipefail

missing=() commands=()
for pair in "$@"; do
  if ! command -v "${pair%%=*}" >/dev/null 2>&1; then
    [ -z "${pair%%=*}" ] || commands+=("${pair%%=*}")
    IFS=, read -ra packages <<<"${pair#*=}"
    missing+=("${packages[@]}")
  fi
done
[ ${#missing[@]} -eq 0 ] && exit 0

fail() {
  echo "error: $1 Install ${missing[*]} yourself and run make again." >&2
  exit 1
}

command -v apt-get >/dev/null 2>&1 || fail "${missing[*]} missing, and this machine has no apt-get to install it with."
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || fail "${missing[*]} missing; installing it needs root or sudo."
  sudo=(sudo)
fi

echo "==> installing ${missing[*]} with apt-get"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1
}
# The package lists are refreshed only where the ones at hand do not do: absent on a fresh image, or too old.
if ! install; then
  echo "==> refreshing the package lists with apt-get update"
  if ! "${sudo[@]}" apt-get update >"$log" 2>&1 || ! install; then
    tail -n 5 "$log" >&2
    fail "apt-get could not install ${missing[*]} (its last lines are above)."
  fi
fi
for command in "${commands[@]}"; do
  command -v "$command" >/dev/null 2>&1 || fail "apt-get installed ${missing[*]}, yet $command is not on the PATH."
done
