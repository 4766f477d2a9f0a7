#!/usr/bin/env bash
# What can be found out on a machine with a card, of which only CUDA 13, cmake, ninja, Python and PyTorch are expected.
#   tools/gpu_check.sh --pack          here: gathers what that machine lacks in build/gpu-pack, to be copied there
#   tools/gpu_check.sh                 there: all stages
#   tools/gpu_check.sh --stage NAME    one of them; it may be run again
#   --limit SECONDS                    of a stage; 480 unless said. What a bench has measured by then is reported.
# Results go to docs/measurements/<card>-<date>.md, a section for each stage: what ran stays when a later stage is cut off, and
# a stage that runs again replaces its section; two may run at once.
#   build     the core, its kernels, tests and benches (preset gpu-check)
#   ops       every op against f64 on the card, golden models in f32 and 16 bits, golden selections
#   sanitize  compute-sanitizer memcheck, racecheck and initcheck over the engine on a tiny model and the 16-bit ops
#   kernels   device_bench beside PyTorch's attention (cuDNN, flash, compiled flex_attention) and products
#   decode    engine_bench, a token after the other, beside torch.compile with graphs and transformers
#   prefill   engine_bench, first tokens, beside PyTorch's
#   schedule  engine_bench, many requests at once
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly pack=build/gpu-pack build=build/gpu-check
limit=480  # seconds of a stage
stages=(build ops sanitize kernels decode prefill schedule)

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
  git describe --always --dirty >"$pack/commit"
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
    --limit)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--limit is a number of seconds, not '${2:-}'"
      limit=$2
      shift
      ;;
    -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown option '$1'; see --help" ;;
  esac
  shift
done

command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so no card"
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
# Of the tree that is here; a copy without its history has the one that was noted when it was packed.
commit=$(git describe --always --dirty 2>/dev/null || cat "$pack/commit" 2>/dev/null || echo unknown)
readonly card driver limit commit
report=docs/measurements/$(tr 'A-Z ' 'a-z-' <<<"${card#NVIDIA }")-$(date +%F).md
readonly report
if [[ ! -f $report ]]; then
  printf '# %s\n\nDriver %s. Made by `tools/gpu_check.sh`; each section names its commit.\n' "$card" "$driver" >"$report"
fi

golden=${RESTKV_SHARED_DIR:-}
[[ -n $golden ]] || { [[ -d $pack/shared ]] && golden=$PWD/$pack/shared || golden=$PWD/../shared; }
[[ -d $golden/golden/models ]] || fail "no golden files at $golden/golden; make them with --pack where they are"
export RESTKV_GOLDEN_MODELS_DIR=$golden/golden/models RESTKV_GOLDEN_DIR=$golden/golden/restkv

readonly results=build/gpu-results
mkdir -p "$results"
op_tests=(kernel_wgmma kernel_op_table kernel_factor_projection kernel_half_ops kernel_attention kernel_attention_shapes kernel_determinism kernel_sampling
  eviction_ops_test)

stage_build() {
  cmake --preset gpu-check -DBUILD_TESTING=ON -DPython3_EXECUTABLE="$(command -v python3)" &&
    timeout "$limit" cmake --build "$build" --target golden_models emulated_golden_selections device_bench engine_bench \
      "${op_tests[@]}" &&
    python3 tools/check_kernels.py "$build"
}
# Side by side: most of their time is the reference's, on the host, of eviction's table so much that it runs in parts. What each
# said is printed when all are done.
stage_ops() {
  local test part parts code failed=0 logs pids=()
  logs=$(mktemp -d)
  for test in "${op_tests[@]}"; do
    # GoogleTest is content with nothing to do: where the card cannot be opened there are no such cases.
    if ! "$build/bin/$test" --gtest_list_tests --gtest_filter='*cuda*' | grep '^  ' >/dev/null; then
      echo "gpu_check: $test has no case on a card: the driver does not open it, or the build has no CUDA"
      failed=1
      continue
    fi
    parts=1
    [[ $test != eviction_ops_test ]] || parts=6
    for (( part = 0; part < parts; ++part )); do
      GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part timeout "$limit" "$build/bin/$test" --gtest_filter='*cuda*' \
        --gtest_brief=1 >"$logs/$test-$part" 2>&1 &
      pids+=("$!:$test-$part")
    done
  done
  for test in golden_models emulated_golden_selections; do
    RESTKV_TEST_DEVICE=cuda timeout "$limit" "$build/bin/$test" >"$logs/$test" 2>&1 &
    pids+=("$!:$test")
  done
  for test in "${pids[@]}"; do
    code=0
    wait "${test%%:*}" || code=$?
    (( code == 0 )) || failed=1
    (( code != 124 )) || echo "gpu_check: ${test#*:} was cut off after $limit s"
    echo "${test#*:}: exit $code, $(tail -n 1 "$logs/${test#*:}")"
    (( code == 0 )) || tail -n 12 "$logs/${test#*:}"
  done
  rm -r "$logs"
  return "$failed"
}
# The whole engine on a tiny model (prompts, decode steps as graphs, cuts) and every op of 16 bits, on small shapes; the tools
# side by side.
stage_sanitize() {
  local tool program name code failed=0 logs pids=()
  logs=$(mktemp -d)
  for tool in memcheck racecheck initcheck; do
    for program in "engine_bench --stage decode --shape tiny" kernel_half_ops; do
      name="$tool of ${program%% *}"
      # shellcheck disable=SC2086
      GTEST_FILTER='*cuda*' timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/bin/"$program \
        >"$logs/$name" 2>&1 &
      pids+=("$!:$name")
    done
  done
  for name in "${pids[@]}"; do
    code=0
    wait "${name%%:*}" || code=$?
    (( code == 0 )) || failed=1
    (( code != 124 )) || echo "gpu_check: ${name#*:} was cut off after $limit s"
    echo "${name#*:}: exit $code, $(grep SUMMARY "$logs/${name#*:}" || echo 'no summary')"
    (( code == 0 )) || grep '^=========' "$logs/${name#*:}" | head -n 12
  done
  rm -r "$logs"
  return "$failed"
}

# bench NAME COMMAND...: lines of JSON to a file of the stage, half of the time for each side; cut off, what is there stays.
bench() {
  local file=$1 code=0
  shift
  timeout "$(( limit / 2 ))" "$@" >"$file" || code=$?
  (( code == 0 || code == 124 )) || echo "gpu_check: '$*' ended with $code"
  (( code == 0 || code == 124 ))
}
# compare STAGE OURS...: our bench and the competitors of the same name, then the tables.
compare() {
  local stage=$1 failed=0
  shift
  bench "$results/$stage.jsonl" "$@" --seconds "$(( limit * 7 / 16 ))" || failed=1
  if [[ $stage == schedule ]]; then
    python3 tests/bench/gpu_report.py "$results/$stage.jsonl"
    return "$failed"
  fi
  bench "$results/$stage.others.jsonl" python3 tests/bench/gpu_competitors.py "$stage" --seconds "$(( limit * 7 / 16 ))" ||
    failed=1
  # What this machine copies and multiplies is measured with the kernels.
  if [[ $stage != kernels && -f $results/kernels.others.jsonl ]]; then
    grep -E '"bench": "(copy|product)"' "$results/kernels.others.jsonl" >>"$results/$stage.others.jsonl" || true
  fi
  python3 tests/bench/gpu_report.py "$results/$stage.jsonl" "$results/$stage.others.jsonl"
  return "$failed"
}
stage_kernels() { compare kernels "$build/bin/device_bench"; }
stage_decode() { compare decode "$build/bin/engine_bench" --stage decode; }
stage_prefill() { compare prefill "$build/bin/engine_bench" --stage prefill; }
stage_schedule() { compare schedule "$build/bin/engine_bench" --stage schedule; }

# A stage's section, at its old place or behind the others.
write_section() {
  flock "$results" python3 - "$report" "$1" "$2" "$3" "$4" "$commit" <<'PYTHON'
import pathlib, re, sys
report, stage, result, seconds, log, commit = sys.argv[1:]
text = pathlib.Path(report).read_text()
output = pathlib.Path(log).read_text(errors="replace").rstrip()
# Tables go in as they are, of all else the end.
if stage in ("kernels", "decode", "prefill", "schedule") and result == "passed":
    body = output
else:
    body = "```\n" + "\n".join(output.splitlines()[-25:]) + "\n```"
section = f"## {stage}: {result}, {seconds} s, commit {commit}\n\n{body}\n"
found = re.search(rf"^## {stage}: .*?(?=^## |\Z)", text, re.M | re.S)
text = text[:found.start()] + section + "\n" + text[found.end():] if found else text.rstrip() + "\n\n" + section
pathlib.Path(report).write_text(text.rstrip() + "\n")
PYTHON
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
  write_section "$stage" "$result" "$((SECONDS - start))" "$log"
  rm -f "$log"
  if [[ $stage == build && $result == FAILED ]]; then break; fi
done
echo "gpu_check: results in $report"
exit "$failed"
