#!/usr/bin/env bash
# What can be found out on a machine with a card, of which only CUDA 13, cmake, ninja and Python are expected.
#   tools/gpu_check.sh --pack          here: gathers what that machine lacks in build/gpu-pack, to be copied there
#   tools/gpu_check.sh                 there: all stages
#   tools/gpu_check.sh --stage NAME    one of build, models, sanitize; each takes a few minutes and may be run again
# Results go to docs/measurements/<card>-<date>.md, stage by stage: what ran stays when a later stage is cut off.
#   build     the core, its kernels and tests (preset gpu-check)
#   models    the golden models on the card, in bf16, and on the emulator for comparison
#   sanitize  compute-sanitizer memcheck, racecheck and initcheck over one small model
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly pack=build/gpu-pack build=build/gpu-check
stages=(build models sanitize)

fail() {
  echo "gpu_check: $1" >&2
  exit 1
}

make_pack() {
  local golden=${RESTKV_SHARED_DIR:-../shared}/golden
  [[ -d $golden/models ]] || fail "no golden files at $golden; RESTKV_SHARED_DIR names their folder"
  [[ -f /usr/src/googletest/CMakeLists.txt ]] || fail "no GoogleTest sources in /usr/src/googletest: tools/install_deps.sh"
  [[ -f /usr/include/nlohmann/json.hpp ]] || fail "no /usr/include/nlohmann/json.hpp: tools/install_deps.sh"
  rm -rf "$pack"
  mkdir -p "$pack/include" "$pack/shared"
  cp -r /usr/src/googletest "$pack/googletest"
  cp -r /usr/include/nlohmann "$pack/include/"
  cp -r "$golden" "$pack/shared/golden"
  echo "gpu_check: $(du -sh "$pack" | cut -f1) in $pack; copy the repository with it"
}

while (( $# )); do
  case $1 in
    --pack) make_pack; exit 0 ;;
    --stage)
      [[ " ${stages[*]} " == *" ${2:-} "* ]] || fail "--stage is one of ${stages[*]}, not '${2:-}'"
      stages=("$2")
      shift
      ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown option '$1'; see --help" ;;
  esac
  shift
done

command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so no card"
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
readonly card driver
report=docs/measurements/$(tr 'A-Z ' 'a-z-' <<<"${card#NVIDIA }")-$(date +%F).md
readonly report
if [[ ! -f $report ]]; then
  printf '# %s\n\nDriver %s, commit %s. Made by `tools/gpu_check.sh`.\n' "$card" "$driver" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" >"$report"
fi

golden=${RESTKV_SHARED_DIR:-}
[[ -n $golden ]] || { [[ -d $pack/shared ]] && golden=$PWD/$pack/shared || golden=$PWD/../shared; }
[[ -d $golden/golden/models ]] || fail "no golden files at $golden/golden; make them with --pack where they are"
export RESTKV_GOLDEN_MODELS_DIR=$golden/golden/models RESTKV_GOLDEN_DIR=$golden/golden/restkv

stage_build() {
  cmake --preset gpu-check -DBUILD_TESTING=ON &&
    cmake --build "$build" --target golden_models emulated_golden_models device_failure_test
}
stage_models() {
  "$build/bin/device_failure_test" && "$build/bin/emulated_golden_models" &&
    RESTKV_TEST_DEVICE=cuda:0 "$build/bin/golden_models"
}
stage_sanitize() {
  local one tool
  one=$(mktemp -d)
  ln -s "$RESTKV_GOLDEN_MODELS_DIR/llama3_gqa" "$one/llama3_gqa"
  for tool in memcheck racecheck initcheck; do
    echo "--- $tool"
    RESTKV_TEST_DEVICE=cuda:0 RESTKV_GOLDEN_MODELS_DIR=$one \
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/bin/golden_models" || return 1
  done
  rm -r "$one"
}

failed=0
for stage in "${stages[@]}"; do
  log=$(mktemp)
  start=$SECONDS
  result=passed
  if ! "stage_$stage" 2>&1 | tee "$log"; then
    result=FAILED
    failed=1
  fi
  printf '\n## %s: %s, %s s\n\n```\n%s\n```\n' "$stage" "$result" "$((SECONDS - start))" "$(tail -20 "$log")" >>"$report"
  rm -f "$log"
  if [[ $stage == build && $result == FAILED ]]; then break; fi
done
echo "gpu_check: results in $report"
exit $failed
