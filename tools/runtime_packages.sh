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
# With a merged /usr a package may have registered the other of the two paths. One look-up for all of them.
mapfile -t paths < <(awk '$2 == "=>" { print $3 }' <<<"$libraries" | sort -u)
owners=$(dpkg-query -S "${paths[@]}" "${paths[@]#/usr}" "${paths[@]/#//usr}" 2>/dev/null || true)  # unknown paths fail
for path in "${paths[@]}"; do
  owner=$(awk -F': ' -v end="${path#/usr}" '!/^diversion/ && ($2 == end || $2 == "/usr" end) {
    split($1, package, /[:,]/); print package[1]; exit }' <<<"$owners")
  [[ -n $owner ]] || { echo "runtime_packages: no package owns $path" >&2; exit 1; }
  echo "$owner"
done | sort -u
