// The scheduler: which fiber of a block runs next, who waits for what, and what a kernel must not do.
#include "emulator/emulator.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "emulator/device.h"
#include "emulator/fiber.h"
#include "emulator/warpgroup.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) static_cast<void>(0)
#endif

namespace restkv::emulator {
namespace {

constexpr uint32_t kSharedAlign = 1024;
constexpr uint32_t kCanaryBytes = 128;
constexpr auto kCanary = std::byte{0xA5};
constexpr uint32_t kMaxBarriers = 16;
constexpr uint32_t kWarp = 32;

enum class State : uint8_t { kReady, kWaitsForBlock, kWaitsForWarp, kDone };

struct Copy {
  std::byte* to;
  const std::byte* from;
  uint32_t bytes, valid, group;
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  State state = State::kDone;
  uint32_t barrier = 0;  // of kWaitsForBlock
  const char* waits_at = "";
  Place place;
  std::vector<Copy> copies;  // in flight
  uint32_t open_group = 0;
};

struct Collective {
  uint32_t mask = 0, arrived = 0;
  const char* kind = "";
  Place place;
  void* lanes[32] = {};
};

struct WarpgroupCollective {
  uint32_t arrived = 0;
  const char* kind = "";
  Place place;
  void* threads[kWarpgroup] = {};
};

struct Barrier {
  uint32_t arrived = 0, expected = 0;
  Place place;
};

struct Machine {
  std::vector<Thread> threads;
  std::vector<std::vector<Collective>> collectives;  // by warp: those some lanes wait in
  std::vector<WarpgroupCollective> warpgroups;       // those some threads wait in
  Barrier barriers[kMaxBarriers];
  std::byte* shared = nullptr;
  uint32_t shared_bytes = 0;
  uint32_t num_threads = 0, num_done = 0, current = 0;
  KernelCall kernel = nullptr;
  const void* call = nullptr;
  std::string error;
  std::mt19937_64 random;
};
thread_local Machine machine;
thread_local Counters counts;
thread_local bool is_running = false;  // a thread of the kernel, not the scheduler
// Of all threads: the engine's is not the test's.
std::atomic<int64_t> call_number = 0, failing_call = 0;
std::atomic<int> failing_code = 0;

std::string text_of(const Place& place) {
  const std::string_view file = place.file_name();
  return std::string(file.substr(file.rfind('/') + 1)) + ":" + std::to_string(place.line());
}

Thread& self() { return machine.threads[machine.current]; }

void wait_as(State state, const char* where, const Place& place) {
  Thread& thread = self();
  thread.state = state;
  thread.waits_at = where;
  thread.place = place;
  thread.fiber->suspend(false);
}

// Unwinds the one thread that failed; the others of its block are dropped where they wait.
struct KernelStopped {};

void run_thread(void*) {
  Thread& thread = self();
  try {
    machine.kernel(machine.call);
    if (!thread.copies.empty()) fail("a thread ends with cp.async copies in flight", Place::current());
    if (const std::string left = unfinished_wgmma(); !left.empty()) fail(left, Place::current());
  } catch (const KernelStopped&) {
    return;
  }
  thread.state = State::kDone;
  ++machine.num_done;
}

void resume(uint32_t index) {
  machine.current = index;
  threadIdx = {index, 0, 0};
  ++counts.switches;
  is_running = true;
  machine.threads[index].fiber->resume();
  is_running = false;
}

// One warp until none of its lanes can run; true if one did.
bool run_warp(uint32_t warp, bool falling) {
  bool ran = false;
  for (bool again = true; again && machine.error.empty();) {
    again = false;
    for (uint32_t i = 0; i < kWarp && machine.error.empty(); ++i) {
      const uint32_t index = warp * kWarp + (falling ? kWarp - 1 - i : i);
      if (machine.threads[index].state != State::kReady) continue;
      resume(index);
      ran = again = true;
    }
  }
  return ran;
}

bool run_pass(Order order) {
  const uint32_t warps = machine.num_threads / kWarp;
  bool ran = false;
  if (order != Order::kShuffled) {
    const bool falling = order == Order::kReverse;
    for (uint32_t i = 0; i < warps && machine.error.empty(); ++i)
      ran |= run_warp(falling ? warps - 1 - i : i, falling);
    return ran;
  }
  std::vector<uint32_t> ready;
  for (uint32_t i = 0; i < machine.num_threads; ++i)
    if (machine.threads[i].state == State::kReady) ready.push_back(i);
  std::shuffle(ready.begin(), ready.end(), machine.random);
  for (const uint32_t index : ready) {
    if (!machine.error.empty()) break;
    if (machine.threads[index].state == State::kReady) resume(index);
    ran = true;
  }
  return ran;
}

std::string who_waits() {
  std::string text;
  int lines = 0;
  for (uint32_t i = 0; i < machine.num_threads && lines < 4; ++i) {
    const Thread& thread = machine.threads[i];
    if (thread.state == State::kDone) continue;
    const std::string place = std::string(thread.waits_at) + " at " + text_of(thread.place);
    if (text.find(place) != std::string::npos) continue;
    text += "; thread " + std::to_string(i) + " waits in " + place;
    ++lines;
  }
  return text;
}

void fill_shared(uint8_t poison) {
  if (machine.shared_bytes > 0) std::memset(machine.shared, poison, machine.shared_bytes);
}

void run_block() {
  fill_shared(options().poison);
  machine.num_done = 0;
  machine.error.clear();
  for (Barrier& barrier : machine.barriers) barrier = {};
  for (uint32_t i = 0; i < machine.num_threads; ++i) {
    Thread& thread = machine.threads[i];
    thread.state = State::kReady;
    thread.copies.clear();
    thread.open_group = 0;
    thread.fiber->restart(run_thread, nullptr);
  }
  for (std::vector<Collective>& waiting : machine.collectives) waiting.clear();
  for (WarpgroupCollective& waiting : machine.warpgroups) waiting.arrived = 0;
  reset_warpgroups(machine.num_threads);
  while (machine.num_done < machine.num_threads && machine.error.empty()) {
    if (!run_pass(options().order) && machine.error.empty()) {
      machine.error = "no thread can run, " + std::to_string(machine.num_done) + " of " +
                      std::to_string(machine.num_threads) + " have returned" + who_waits();
    }
  }
  const auto* canary = machine.shared + machine.shared_bytes;
  ASAN_UNPOISON_MEMORY_REGION(canary, kCanaryBytes);
  for (uint32_t i = 0; i < kCanaryBytes && machine.error.empty(); ++i)
    if (canary[i] != kCanary) machine.error = "the kernel wrote behind its shared memory";
  ASAN_POISON_MEMORY_REGION(canary, kCanaryBytes);
  for (uint32_t i = 0; i < kMaxBarriers && machine.error.empty(); ++i) {
    const uint32_t arrived = machine.barriers[i].arrived;
    if (arrived > 0)
      machine.error =
          "barrier " + std::to_string(i) + " is left with " + std::to_string(arrived) + " threads";
  }
  if (machine.error.empty()) return;
  throw EmulatorError("block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                      std::to_string(blockIdx.z) + "), thread " + std::to_string(machine.current) + ": " +
                      machine.error);
}

Options options_from_environment() {
  Options options;
  if (const char* order = std::getenv("RESTKV_EMULATOR_ORDER")) {
    const std::string_view text = order;
    if (text == "forward") {
      options.order = Order::kForward;
    } else if (text == "reverse") {
      options.order = Order::kReverse;
    } else if (text.starts_with("shuffled:")) {
      options.order = Order::kShuffled;
      options.seed = std::strtoull(text.substr(9).data(), nullptr, 10);
    } else {
      throw EmulatorError("RESTKV_EMULATOR_ORDER is forward, reverse or shuffled:SEED, not " +
                          std::string(text));
    }
  }
  if (const char* timing = std::getenv("RESTKV_EMULATOR_TIMING")) {
    const std::string_view text = timing;
    if (text == "at_once") {
      options.timing = Timing::kAtOnce;
    } else if (text == "late") {
      options.timing = Timing::kLate;
    } else if (text.starts_with("mixed:")) {
      options.timing = Timing::kMixed;
      options.timing_seed = std::strtoull(text.substr(6).data(), nullptr, 10);
    } else {
      throw EmulatorError("RESTKV_EMULATOR_TIMING is at_once, late or mixed:SEED, not " + std::string(text));
    }
  }
  if (const char* poison = std::getenv("RESTKV_EMULATOR_POISON"))
    options.poison = static_cast<uint8_t>(std::strtoul(poison, nullptr, 0));
  options.set_card(default_card());
  return options;
}

// Blocks of the launch, as they are counted on x, y, z.
void run_blocks(GridSize grid) {
  const uint64_t total = uint64_t{grid.x} * grid.y * grid.z;
  const auto run_one = [&](uint64_t index) {
    blockIdx = {static_cast<uint32_t>(index % grid.x), static_cast<uint32_t>(index / grid.x % grid.y),
                static_cast<uint32_t>(index / grid.x / grid.y)};
    run_block();
    ++counts.blocks;
  };
  switch (options().order) {
    case Order::kForward:
      for (uint64_t i = 0; i < total; ++i) run_one(i);
      return;
    case Order::kReverse:
      for (uint64_t i = total; i > 0; --i) run_one(i - 1);
      return;
    case Order::kShuffled: {
      std::vector<uint64_t> blocks(total);
      for (uint64_t i = 0; i < total; ++i) blocks[i] = i;
      machine.random.seed(options().seed);
      std::shuffle(blocks.begin(), blocks.end(), machine.random);
      for (const uint64_t i : blocks) run_one(i);
    }
  }
}

}  // namespace

Options& options() {
  thread_local Options value = options_from_environment();
  return value;
}

Card default_card() {
  const char* card = std::getenv("RESTKV_EMULATOR_CARD");
  const std::string_view text = card == nullptr ? "sm_80" : card;
  if (text != "sm_80" && text != "sm_90")
    throw EmulatorError("RESTKV_EMULATOR_CARD is sm_80 or sm_90, not " + std::string(text));
  return text == "sm_80" ? Card::kSm80 : Card::kSm90;
}

Counters& counters() { return counts; }

void run_grid(GridSize grid, uint32_t block, uint32_t smem, KernelCall kernel, const void* call) {
  const auto refuse = [](const std::string& why) { throw EmulatorError("launch refused: " + why); };
  if (block == 0 || block > 1024 || block % kWarp != 0)
    refuse("a block of " + std::to_string(block) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
           std::to_string(grid.z));
  if (smem > options().max_shared_bytes)
    refuse(std::to_string(smem) + " bytes of shared memory, " + std::to_string(options().max_shared_bytes) +
           " there are");
  machine.kernel = kernel;
  machine.call = call;
  machine.num_threads = block;
  while (machine.threads.size() < block) {
    machine.threads.emplace_back().fiber = std::make_unique<Fiber>(kFiberStackBytes);
  }
  machine.collectives.resize(block / kWarp);
  machine.warpgroups.resize(block / kWarpgroup);
  struct Free {
    void operator()(std::byte* p) const {
      ASAN_UNPOISON_MEMORY_REGION(p + machine.shared_bytes, kCanaryBytes);
      std::free(p);
    }
  };
  const size_t bytes = (size_t{smem} + kCanaryBytes + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
  const std::unique_ptr<std::byte, Free> memory(
      static_cast<std::byte*>(std::aligned_alloc(kSharedAlign, bytes)));
  machine.shared = memory.get();
  machine.shared_bytes = smem;
  std::memset(machine.shared + smem, static_cast<int>(kCanary), kCanaryBytes);
  ASAN_POISON_MEMORY_REGION(machine.shared + smem, kCanaryBytes);
  blockDim = {block, 1, 1};
  gridDim = {grid.x, grid.y, grid.z};
  ++counts.launches;
  run_blocks(grid);
}

int next_call_error() {
  const int64_t number = ++call_number;
  const int64_t failing = failing_call;
  return failing != 0 && number == failing ? failing_code.load() : 0;
}

void fail_call(int64_t k, int code) {
  failing_code = code;
  failing_call = k == 0 ? 0 : call_number + k;
}

int64_t num_calls() { return call_number; }

std::byte* shared_base() { return machine.shared; }
bool is_in_kernel() { return is_running; }
uint32_t shared_bytes() { return machine.shared_bytes; }

void fail(const std::string& what, const Place& place) {
  machine.error = what + " (" + text_of(place) + ")";
  throw KernelStopped();
}

void check_shared(const void* p, uint32_t bytes, uint32_t align, const Place& place) {
  const auto* at = static_cast<const std::byte*>(p);
  if (at < machine.shared || at + bytes > machine.shared + machine.shared_bytes)
    fail("an address outside of the block's " + std::to_string(machine.shared_bytes) +
             " bytes of shared memory",
         place);
  if (reinterpret_cast<uintptr_t>(p) % align != 0)
    fail("a shared address that is not a multiple of " + std::to_string(align), place);
}

void barrier(uint32_t id, uint32_t threads, bool waits, const Place& place) {
  if (id >= kMaxBarriers || threads % kWarp != 0 || threads == 0 || threads > machine.num_threads)
    fail("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads", place);
  Barrier& barrier = machine.barriers[id];
  if (id == 0 && machine.num_done > 0)
    fail("sync_threads() after " + std::to_string(machine.num_done) + " threads of the block have returned",
         place);
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.place = place;
  } else if (barrier.expected != threads) {
    fail("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads, others said " +
             std::to_string(barrier.expected),
         place);
  } else if (id == 0 && (barrier.place.line() != place.line() ||
                         std::strcmp(barrier.place.file_name(), place.file_name()) != 0)) {
    fail("sync_threads() while other threads of the block wait in the one at " + text_of(barrier.place),
         place);
  }
  if (++barrier.arrived < barrier.expected) {
    if (!waits) return;
    self().barrier = id;
    wait_as(State::kWaitsForBlock, id == 0 ? "sync_threads" : "barrier_sync", place);
    return;
  }
  barrier.arrived = 0;
  for (uint32_t i = 0; i < machine.num_threads; ++i) {
    Thread& thread = machine.threads[i];
    if (thread.state == State::kWaitsForBlock && thread.barrier == id) thread.state = State::kReady;
  }
}

void copy_async(void* shared, const void* global, uint32_t bytes, uint32_t valid, const Place& place) {
  check_shared(shared, bytes, bytes, place);
  if (valid > bytes) fail("cp.async of " + std::to_string(valid) + " valid bytes", place);
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) fail("cp.async from a misaligned address", place);
  for (uint32_t i = 0; options().unwritten != 0 && i + 4 <= valid; i += 4) {
    uint32_t word;
    std::memcpy(&word, static_cast<const std::byte*>(global) + i, 4);
    if (word == options().unwritten)
      fail("cp.async of memory that nobody wrote, from its byte " + std::to_string(i), place);
  }
  auto* to = static_cast<std::byte*>(shared);
  std::memset(to, options().poison, bytes);  // what was there is lost from now on
  self().copies.push_back({to, static_cast<const std::byte*>(global), bytes, valid, self().open_group});
}

void copy_commit() { ++self().open_group; }

void copy_wait(uint32_t groups_left) {
  Thread& thread = self();
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (copy.group + groups_left >= thread.open_group) return false;
    std::memset(copy.to, 0, copy.bytes);
    if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
    note_landed_copy(copy.to, copy.bytes);
    return true;
  });
}

void collective(const char* kind, uint32_t mask, void* operands, Perform perform, const Place& place) {
  const uint32_t lane = machine.current % kWarp, first = machine.current - lane;
  if ((mask >> lane & 1u) == 0) fail(std::string(kind) + " by a lane that is not in its mask", place);
  std::vector<Collective>& waiting = machine.collectives[first / kWarp];
  auto entry =
      std::find_if(waiting.begin(), waiting.end(), [&](const Collective& c) { return c.mask == mask; });
  if (entry == waiting.end()) {
    waiting.push_back({.mask = mask, .arrived = 0, .kind = kind, .place = place, .lanes = {}});
    entry = waiting.end() - 1;
  } else if (std::strcmp(entry->kind, kind) != 0 || entry->place.line() != place.line()) {
    fail(std::string(kind) + " while other lanes of the warp are in " + entry->kind + " at " +
             text_of(entry->place),
         place);
  }
  entry->arrived |= 1u << lane;
  entry->lanes[lane] = operands;
  if (entry->arrived != mask) {
    wait_as(State::kWaitsForWarp, kind, place);
    return;
  }
  const Collective done = *entry;
  waiting.erase(entry);
  perform(done.lanes);
  for (uint32_t i = 0; i < kWarp; ++i)
    if ((mask >> i & 1u) != 0 && i != lane) machine.threads[first + i].state = State::kReady;
}

void warpgroup_collective(const char* kind, void* operands, PerformForWarpgroup perform, const Place& place) {
  const uint32_t group = machine.current / kWarpgroup, first = group * kWarpgroup;
  if (group >= machine.warpgroups.size())
    fail(std::string(kind) + " of a warpgroup that is not whole: the block has " +
             std::to_string(machine.num_threads) + " threads",
         place);
  WarpgroupCollective& waiting = machine.warpgroups[group];
  if (waiting.arrived == 0) {
    waiting.kind = kind;
    waiting.place = place;
  } else if (std::strcmp(waiting.kind, kind) != 0 || waiting.place.line() != place.line() ||
             std::strcmp(waiting.place.file_name(), place.file_name()) != 0) {
    fail(std::string(kind) + " while other threads of the warpgroup are in " + waiting.kind + " at " +
             text_of(waiting.place),
         place);
  }
  waiting.threads[machine.current - first] = operands;
  if (++waiting.arrived < kWarpgroup) {
    wait_as(State::kWaitsForWarp, kind, place);
    return;
  }
  const WarpgroupCollective done = waiting;
  waiting.arrived = 0;
  perform(done.threads, place);
  for (uint32_t i = 0; i < kWarpgroup; ++i)
    if (first + i != machine.current) machine.threads[first + i].state = State::kReady;
}

}  // namespace restkv::emulator
