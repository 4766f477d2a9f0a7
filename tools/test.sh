#!/usr/bin/env bash
# Everything that decides whether RestKV is in order, on a fresh Debian 12 machine and without a GPU:
#   install (Debian and Python packages, the demo model), release (build), asan and tsan (build, ctest), fuzz (build,
#   10 s for each target), cuda, tests (ctest of release, pytest).
# A part that fails does not stop the later ones; the summary names it and the exit code is 1. More than 60 minutes in
# all is a failure too, more than the 40 that are the aim on two cores is said. Logs: build/test-logs/.
#   tools/test.sh [--slow]    --slow adds the tests labelled slow and runs each fuzz target for 300 s
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly goal_minutes=40 limit_minutes=60
readonly logs=build/test-logs
readonly labels=(install release asan tsan fuzz cuda tests)
fuzz_seconds=10
ctest_options=(-LE 'slow|bench')
pytest_options=(-m 'not slow')
check_time=1
install_options=()

while (( $# )); do
  case $1 in
    --slow)
      fuzz_seconds=300
      ctest_options=(-LE bench)
      pytest_options=()
      check_time=0
      install_options=(--slow)
      ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "test: unknown option '$1'; see tools/test.sh --help" >&2; exit 2 ;;
  esac
  shift
done

mkdir -p "$logs"
rm -f "$logs"/*.log
jobs=$(nproc)
readonly jobs
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs
# Settings of the user's shell must not reach the programs under test.
for name in $(compgen -e RESTKV_ || true); do
  case $name in
    RESTKV_GOLDEN_* | RESTKV_TOKENIZERS_DIR | RESTKV_SHARED_DIR) ;;
    *) unset "$name" ;;
  esac
done

declare -A seconds=() result=()

export LC_ALL=C.UTF-8
# Not detect_stack_use_after_return: gcc 12 then misaligns AVX-512 variables on the stack (gcc bug 110027).
export UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

# BUILD_TESTING is said aloud because quickstart.sh may have configured build/release without the tests; the Python of the
# tests has numpy.
# build(preset[, target])
build() {
  cmake --preset "$1" -DBUILD_TESTING=ON -DPython3_EXECUTABLE="$PWD/build/venv/bin/python" &&
    cmake --build "build/$1" --target "${2:-all}"
}
run_ctest() {
  ctest --test-dir "build/$1" --output-on-failure --no-tests=error -j "$jobs" "${ctest_options[@]}"
}

part_install() {
  tools/install_deps.sh --cuda "${install_options[@]}" || return 1
  # Without the network the tests of the demo model are skipped, and say so.
  tools/get_demo_model.sh || echo "test: the demo model could not be had; its tests will be skipped"
}

part_release() { build release; }

# The tests and what they link; not the program.
part_asan() { build asan tests/all && run_ctest asan; }

part_tsan() { build tsan tests/all && run_ctest tsan; }

# fuzz_one(target): the first corpus folder grows, the second holds the seeds.
fuzz_one() {
  local target=$1 name corpus
  name=$(basename "$target")
  corpus=("build/fuzz/corpus/$name")
  mkdir -p "${corpus[0]}" build/fuzz/findings
  if [[ -d tests/fuzz/corpus/$name ]]; then corpus+=("tests/fuzz/corpus/$name"); fi
  if "$target" -max_total_time="$fuzz_seconds" -timeout=5 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$name-" "${corpus[@]}" >"$logs/$name.log" 2>&1; then
    echo "fuzz: $name: $(awk '/stat::number_of_executed_units/ { print $2 }' "$logs/$name.log") inputs, nothing found"
  else
    printf 'fuzz: %s FAILED (whole log: %s):\n%s\n' "$name" "$logs/$name.log" "$(tail -40 "$logs/$name.log")"
    return 1
  fi
}
export -f fuzz_one
export fuzz_seconds logs

part_fuzz() {
  cmake --preset fuzz && cmake --build build/fuzz --target tests/fuzz/all || return 1
  local targets
  targets=$(find build/fuzz/bin -maxdepth 1 -type f -executable ! -name restkv | sort)
  if [[ -z $targets ]]; then
    echo "fuzz: no target was built"
    return 1
  fi
  xargs -P "$jobs" -I{} bash -c 'fuzz_one {}' <<<"$targets"
}

part_cuda() {
  # All kernels for both architectures, and a program with them on a machine without a driver. What they compute is checked on
  # the emulator, in the part `tests`.
  local nvcc
  nvcc=$(command -v nvcc || find /usr/local/cuda/bin build/cuda-venv/lib -name nvcc -path '*/bin/nvcc' 2>/dev/null | head -1)
  if [[ -z $nvcc ]]; then
    echo "there is no nvcc: tools/install_deps.sh --cuda brings one"
    return 1
  fi
  export CUDACXX=$nvcc
  cmake --preset cuda -DBUILD_TESTING=ON -DPython3_EXECUTABLE="$PWD/build/venv/bin/python" &&
    cmake --build build/cuda --target device_failure_test &&
    ctest --test-dir build/cuda --output-on-failure --no-tests=error -R '^(device_failure_test|kernel_resources)$'
}

part_tests() {
  local failed=0
  run_ctest release || failed=1
  build/venv/bin/python -m pytest tests/e2e -ra --durations=5 "${pytest_options[@]}" || failed=1
  return $failed
}

# Runs one part with its output on the terminal and in a log. A function in a condition runs without `set -e`: each part
# returns its own result.
run_part() {
  local label=$1 start=$EPOCHREALTIME
  printf '\n=== %s\n' "$label"
  result[$label]=passed
  if ! "part_$label" 2>&1 | tee "$logs/$label.log"; then result[$label]=FAILED; fi
  seconds[$label]=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')
}

for label in "${labels[@]}"; do run_part "$label"; done

failed=0
printf '\n%-8s %8s  %s\n' part minutes result
for label in "${labels[@]}"; do
  awk -v label="$label" -v s="${seconds[$label]}" -v r="${result[$label]}" 'BEGIN { printf "%-8s %8.1f  %s\n", label, s / 60, r }'
  if [[ ${result[$label]} != passed ]]; then failed=1; fi
done
total=$(awk -v s="${seconds[*]}" 'BEGIN { n = split(s, part, " "); for (i = 1; i <= n; i++) t += part[i]; print t / 60 }')
printf '%-8s %8.1f\n' total "$total"
if (( check_time )) && awk -v t="$total" -v limit=$goal_minutes 'BEGIN { exit !(t > limit) }'; then
  echo "test: it took more than the $goal_minutes minutes that it is to stay below"
fi
if (( check_time )) && awk -v t="$total" -v limit=$limit_minutes 'BEGIN { exit !(t > limit) }'; then
  echo "test: FAILED: it took more than $limit_minutes minutes"
  failed=1
fi
for label in "${labels[@]}"; do
  if [[ ${result[$label]} != passed ]]; then echo "test: FAILED: $label, see $logs/$label.log"; fi
done
if (( failed == 0 )); then echo "test: all parts passed"; fi

# The runners' own closing lines, last.
for label in asan tsan tests; do
  if [[ -f $logs/$label.log ]]; then
    grep -hE '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+|^=+ .*(passed|failed|error|skipped|no tests ran).* in [0-9.]+s.* =+$' \
      "$logs/$label.log" || true
  fi
done
exit $failed
