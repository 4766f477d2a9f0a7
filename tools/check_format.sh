#!/usr/bin/env bash
# Checks that every tracked C++ and CUDA file is as clang-format 14 leaves it; --fix rewrites them.
# Another version formats differently, so there is no fallback: without clang-format-14 it exits 77 (skipped).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

formatter=$(command -v clang-format-14) || {
  echo "check_format: SKIPPED: clang-format-14 is not installed (tools/install_deps.sh installs it)"
  exit 77
}
mapfile -d '' files < <(git ls-files -z --cached -- '*.h' '*.cpp' '*.cu' '*.cuh')
existing=()
for file in "${files[@]}"; do
  if [[ -f $file ]]; then existing+=("$file"); fi
done
if (( ${#existing[@]} == 0 )); then
  echo "check_format: no tracked source file found; is this a git checkout?"
  exit 1
fi

if [[ ${1:-} == --fix ]]; then
  "$formatter" -i "${existing[@]}"
  echo "check_format: ${#existing[@]} files formatted"
elif printf '%s\0' "${existing[@]}" | xargs -0 -n 16 -P "$(nproc)" "$formatter" --dry-run -Werror; then
  echo "check_format: ${#existing[@]} files are in order"
else
  echo "check_format: run tools/check_format.sh --fix"
  exit 1
fi
