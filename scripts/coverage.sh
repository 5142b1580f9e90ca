#!/usr/bin/env bash
# Prints each package's coverage and fails where the whole is below the floor.
# usage: scripts/coverage.sh PROFILE FLOOR
set -euo pipefail

profile=$1 floor=$2
# Lines are file:from,to statements count. The same block may appear once per test binary: covered if any covered it.
awk -v floor="$floor" '
  # Packages whose name ends in test are parts of tests.
  $1 ~ /\/internal\// && $1 !~ /test\/[^\/]*$/ {
    statements[$1] = $2
    if ($3 > 0) covered[$1] = 1
  }
  END {
    for (block in statements) {
      package = block
      sub(/\/[^\/]*$/, "", package)
      sub(/^.*\/internal\//, "internal/", package)
      all[package] += statements[block]
      total += statements[block]
      if (block in covered) { hit[package] += statements[block]; hits += statements[block] }
    }
    if (total == 0) { print "error: the coverage profile is empty"; exit 1 }
    for (package in all) printf "%6.1f %%  %s\n", 100 * hit[package] / all[package], package | "sort -k3"
    close("sort -k3")
    printf "%6.1f %%  of internal/ (at least %d %% is asked)\n", 100 * hits / total, floor
    if (100 * hits / total < floor) { print "error: coverage of internal/ is below the floor" ; exit 1 }
  }' "$profile"
