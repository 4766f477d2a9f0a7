// sim [--seed N] [--seeds COUNT] [--steps TOTAL]: seeds N .. N + COUNT - 1, TOTAL turns in all. Exit code 1 and the seed on a
// failure: `sim --seed N --seeds 1 --steps STEPS` repeats it.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include <unistd.h>

#include "tests/sim/simulation.h"

namespace {

char current[96];  // "seed 17, 15625 steps", for a CHECK that aborts

void say_seed(int) {
  [[maybe_unused]] auto written = ::write(2, current, std::strlen(current));
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t first = 1;
  int64_t seeds = 64, steps = 1'000'000;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const int64_t value = i + 1 < argc ? std::atoll(argv[i + 1]) : -1;
    if (flag == "--seed" && value >= 0) {
      first = static_cast<uint64_t>(value);
    } else if (flag == "--seeds" && value > 0) {
      seeds = value;
    } else if (flag == "--steps" && value > 0) {
      steps = value;
    } else {
      std::fprintf(stderr, "sim [--seed N] [--seeds COUNT] [--steps TOTAL]\n");
      return 2;
    }
  }
  std::signal(SIGABRT, say_seed);
  const auto start = std::chrono::steady_clock::now();
  const int64_t each = (steps + seeds - 1) / seeds;
  restkv::sim::Coverage coverage;
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(seeds); ++seed) {
    std::snprintf(current, sizeof current, "sim: FAILED: --seed %llu --seeds 1 --steps %lld\n",
                  static_cast<unsigned long long>(seed), static_cast<long long>(each));
    try {
      restkv::sim::simulate(seed, each, coverage);
    } catch (const std::runtime_error& error) {
      std::fprintf(stderr, "sim: %s\n%s", error.what(), current);
      return 1;
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  bool is_whole = true;
  for (const auto& [name, meaning] : restkv::sim::must_happen()) {
    const int64_t count = coverage[name];
    std::printf("%12lld  %s\n", static_cast<long long>(count), meaning.c_str());
    is_whole = is_whole && count > 0;
  }
  std::printf("%lld steps, seeds %llu to %llu, %.1f s\n", static_cast<long long>(each * seeds),
              static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + static_cast<uint64_t>(seeds) - 1), seconds);
  // A short run need not see everything.
  if (!is_whole && each * seeds >= 1'000'000) {
    std::fprintf(stderr, "sim: FAILED: something that must happen did not (0 above)\n");
    return 1;
  }
  return 0;
}
