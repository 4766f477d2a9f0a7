#!/usr/bin/env bash
# Prints the Debian packages that own the shared libraries of a program, one a line: what a container needs to run it.
#   tools/runtime_packages.sh build/release/bin/restkv
set -euo pipefail

program=${1:?usage: tools/runtime_packages.sh PROGRAM}
libraries=$(ldd "$program") || { echo "runtime_packages: ldd cannot read $program" >&2; exit 1; }
if grep -q 'not found' <<<"$libraries"; then
  grep 'not found' <<<"$libraries" >&2
  exit 1
fi
# By file name: with a merged /usr a package may have registered the other of the two paths.
awk '$2 == "=>" { print $1 }' <<<"$libraries" | sort -u | while read -r library; do
  owner=$(dpkg-query -S "*/$library" 2>/dev/null | awk -F: '!/^diversion/ { print $1; exit }')
  [[ -n $owner ]] || { echo "runtime_packages: no package owns $library" >&2; exit 1; }
  echo "$owner"
done | sort -u
