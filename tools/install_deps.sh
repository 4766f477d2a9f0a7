#!/usr/bin/env bash
# Installs what RestKV needs on Debian 12 and nothing that is there already; takes no time when all of it is.
#   tools/install_deps.sh            everything: build, tests, the Python environment of the tests (build/venv)
#   tools/install_deps.sh --runtime  only what building and running `restkv` needs
#   tools/install_deps.sh --slow     also the libraries that slow tests compare with (build/oracle-venv)
#   tools/install_deps.sh --cuda     also a CUDA 13 compiler from PyPI (build/cuda-venv), where none is installed
#   tools/install_deps.sh --list build|test   prints package names, for container images
# The list of packages is tools/debian-packages.txt, those of the Python packages tests/requirements.txt and
# tests/requirements-slow.txt.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root package_list="$root/tools/debian-packages.txt" requirements="$root/tests/requirements.txt"

say() { printf 'install_deps: %s\n' "$1"; }
fail() {
  printf 'install_deps: %s\n' "$1" >&2
  printf '  what to do: %s\n' "$2" >&2
  exit 1
}

packages_of() { awk -v set="$1" '$1 == set { print $2 }' "$package_list"; }

want_tests=1
want_cuda=0
want_slow=0
while (( $# )); do
  case $1 in
    --runtime) want_tests=0 ;;
    --test) want_tests=1 ;;
    --cuda) want_cuda=1 ;;
    --slow) want_slow=1 ;;
    --list)
      [[ ${2:-} == build || ${2:-} == test ]] || fail "--list needs build or test" "see the head of tools/install_deps.sh"
      packages_of "$2"
      exit 0
      ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown option '$1'" "see tools/install_deps.sh --help" ;;
  esac
  shift
done

# --- Debian packages ---
wanted=$(packages_of build)
if (( want_tests )); then wanted+=$'\n'$(packages_of test); fi

command -v dpkg-query >/dev/null || fail "this is not a Debian system: there is no dpkg-query" \
  "install the equivalents of these packages by hand: $(tr '\n' ' ' <<<"$wanted")"

# dpkg-query fails for a name it has never heard of, and prints the state of the others all the same.
installed=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' $wanted 2>/dev/null | awk '$1 == "ii" { print $2 }' || true)
missing=$(comm -23 <(sort -u <<<"$wanted") <(sort -u <<<"$installed") | tr '\n' ' ')
missing=${missing% }

if [[ -n $missing ]]; then
  as_root=()
  if (( EUID != 0 )); then
    command -v sudo >/dev/null || fail "packages are missing, and this user is not root and has no sudo: $missing" \
      "as root: apt-get update && apt-get install --no-install-recommends $missing"
    as_root=(sudo)
    [[ -t 0 ]] || as_root=(sudo -n)
  fi
  say "installing $missing"
  apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  "${apt[@]}" update >"$log" 2>&1 || {
    tail -5 "$log" >&2
    fail "apt-get update failed (see above); still missing: $missing" "check the network, /etc/apt/sources.list and your rights"
  }
  # shellcheck disable=SC2086  # one word for each package
  "${apt[@]}" install -y --no-install-recommends $missing >"$log" 2>&1 </dev/null || {
    tail -15 "$log" >&2
    fail "apt-get could not install: $missing" "RestKV is built on Debian 12 (bookworm); is this one? ($(. /etc/os-release && echo "$PRETTY_NAME"))"
  }
fi

# --- Python environments ---
# make_venv(folder, stamp, pip arguments...): a virtual environment, made anew only when the stamp changes.
make_venv() {
  local folder=$1 stamp=$2
  shift 2
  if [[ -x $folder/bin/python && -f $folder/stamp && $(<"$folder/stamp") == "$stamp" ]] &&
    "$folder/bin/python" -c '' 2>/dev/null; then
    return
  fi
  say "making the Python environment ${folder#"$root"/}"
  rm -rf "$folder"
  mkdir -p "$(dirname "$folder")"
  python3 -m venv "$folder" || fail "python3 cannot make a virtual environment in $folder" "apt-get install python3-venv"
  local log="$folder/pip.log"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" >"$log" 2>&1 || {
    tail -5 "$log" >&2
    fail "pip could not install $*" "check the network or the pip index (pip config list), then run it again"
  }
  printf '%s' "$stamp" >"$folder/stamp"
}

if (( want_tests )); then
  make_venv "$root/build/venv" "$(sha256sum <"$requirements")" -r "$requirements"
fi

if (( want_slow )); then
  slow_requirements="$root/tests/requirements-slow.txt"
  make_venv "$root/build/oracle-venv" "$(sha256sum <"$slow_requirements")" -r "$slow_requirements"
fi

if (( want_cuda )); then
  if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
    say "a CUDA compiler is installed: $(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
  else
    toolkit='cuda-toolkit[nvcc,cudart,cublas,crt,nvvm,cccl]==13.*'
    make_venv "$root/build/cuda-venv" "$toolkit" "$toolkit"
    nvcc=$(find "$root/build/cuda-venv/lib" -type f -path '*/bin/nvcc' -print -quit)
    [[ -n $nvcc ]] || fail "$toolkit brought no nvcc" "install the CUDA 13 toolkit by hand"
    chmod +x "$nvcc"
    say "CUDA compiler: ${nvcc#"$root"/}"
  fi
fi

say "all there"
