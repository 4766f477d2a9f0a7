// See thread_pool.h. Memory order: `claim_` moves to the new region before function, context and count change, and
// those are released and acquired one by one: a worker that reads a value of a later region therefore also sees a
// later `claim_`, and its compare-exchange fails. What chunks wrote is released by `num_done_`.
#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <system_error>

#include "kernels/base/check.h"
#include "kernels/base/control_group.h"
#include "kernels/base/device_error.h"

namespace restkv::cpu {
namespace {

// Longer than the gaps between the regions of a step, short beside a scheduler's time slice.
constexpr auto kSpin = std::chrono::microseconds(60);

void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or the spin time is over.
template <class F>
bool spin_until(const F& ready) {
  if (ready()) return true;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      pause_core();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// Processors' worth of time that a group may take; infinite: no quota.
double quota_of(const std::string& folder) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  // v2: "max 100000" or "150000 100000"; v1 has the two numbers in two files, and -1 for none
  double quota = 0, period = 0;
  std::ifstream v2(folder + "/cpu.max");
  if (v2 >> quota >> period && period > 0) return quota / period;
  quota = control_group_number(folder + "/cpu.cfs_quota_us").value_or(-1);
  period = control_group_number(folder + "/cpu.cfs_period_us").value_or(0);
  return quota > 0 && period > 0 ? quota / period : kNone;
}

int quota_cores(const std::string& root) {
  double cores = 1 << 20;
  for (const std::string& folder : control_group_folders("cpu", root))
    cores = std::min(cores, quota_of(folder));
  return std::max(1, static_cast<int>(cores + 0.5));
}

}  // namespace

int usable_cores(const std::string& root) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return std::max(1, std::min(quota_cores(root), static_cast<int>(std::thread::hardware_concurrency())));
  }
  std::set<std::string> cores;  // one entry for each set of hyperthreads
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!(file >> siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return std::max(1, std::min(quota_cores(root), static_cast<int>(cores.size())));
}

ThreadPool::ThreadPool(int num_threads) {
  CHECK(num_threads >= 1 && num_threads <= 1024) << num_threads;
  workers_.reserve(static_cast<size_t>(num_threads));
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& error) {
    stop();
    throw DeviceError(
        "cannot start " + std::to_string(num_threads) + " threads that compute (" + error.code().message() +
            "): lower --threads, or raise the limit (ulimit -u, a container's limit of processes)",
        /*is_sticky=*/false);
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  is_stopping_.store(true);
  region_.fetch_add(1);
  region_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::claim_chunks(uint32_t region, int thread) {
  uint64_t claim = claim_.load(std::memory_order_acquire);
  while (true) {
    const uint32_t count = num_chunks_.load(std::memory_order_acquire);
    const Function function = function_.load(std::memory_order_acquire);
    const void* context = context_.load(std::memory_order_acquire);
    const uint32_t chunk = static_cast<uint32_t>(claim);
    if (static_cast<uint32_t>(claim >> 32) != region || chunk >= count) return;
    if (!claim_.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    function(context, chunk, thread);
    if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) num_done_.notify_one();
    claim = claim_.load(std::memory_order_acquire);
  }
}

void ThreadPool::run(int64_t num_chunks, Function function, const void* context) {
  if (num_chunks <= 1 || workers_.empty()) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) function(context, chunk, 0);
    return;
  }
  CHECK(num_chunks < int64_t{1} << 31) << num_chunks;
  const uint32_t count = static_cast<uint32_t>(num_chunks);
  const uint32_t region = region_.load(std::memory_order_relaxed) + 1;
  num_done_.store(0, std::memory_order_relaxed);
  claim_.store(uint64_t{region} << 32, std::memory_order_release);
  function_.store(function, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  num_chunks_.store(count, std::memory_order_release);
  region_.store(region, std::memory_order_release);
  region_.notify_all();

  claim_chunks(region, 0);
  const auto all_done = [&] { return num_done_.load(std::memory_order_acquire) == count; };
  while (!spin_until(all_done)) {
    const uint32_t done = num_done_.load(std::memory_order_acquire);
    if (done != count) num_done_.wait(done, std::memory_order_acquire);
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    const auto has_new = [&] { return region_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(has_new)) region_.wait(seen, std::memory_order_acquire);
    // In this order: who has seen the destructor's region sees that it is the end, and does not wait for another.
    const uint32_t region = region_.load(std::memory_order_acquire);
    if (is_stopping_.load(std::memory_order_acquire)) return;
    if (region == seen) continue;
    seen = region;
    claim_chunks(region, thread);
  }
}

}  // namespace restkv::cpu
