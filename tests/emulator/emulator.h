// Runs CUDA kernels on the CPU: block by block, a fiber for each thread. launch.h calls run_grid(); kernels reach the rest
// through device.h. tests/emulator/README.md says what is checked and how to use it for a new kernel.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace restkv::emulator {

// The kernel misbehaved: a barrier some threads never reach, a divergent warp function, a misaligned or out-of-range
// shared address, copies still in flight at the end... The message names kernel place, block and thread.
class EmulatorError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Schedules. Correct kernels give the same answer under each of them, bit for bit.
enum class Order : uint8_t {
  kForward,   // blocks rise; a warp runs until all its lanes wait for the block, then the next
  kReverse,   // the same with blocks, warps and lanes falling
  kShuffled,  // blocks in random order; whichever thread can run, drawn anew in each pass
};

// When the emulated device (emulated_backend.h) does what it was given: a card may at once, at the last moment or any time in
// between, and the host must be right in every case.
enum class Timing : uint8_t {
  kAtOnce,
  kLate,   // when it is waited for, and no more than what is waited for
  kMixed,  // by turns at once, late and some of it, drawn at each wait
};

// What a launch may ask for.
enum class Card : uint8_t {
  kSm80,  // 163 KB of shared memory
  kSm90,  // 227 KB, the products of a warpgroup
};
constexpr uint32_t max_shared_bytes(Card card) { return (card == Card::kSm80 ? 163u : 227u) << 10; }

struct Options {
  Order order = Order::kForward;
  uint64_t seed = 1;  // of kShuffled
  Timing timing = Timing::kMixed;
  uint64_t timing_seed = 1;  // of kMixed
  uint8_t poison =
      0xFF;  // byte that shared memory and targets of copies in flight are filled with: 0xFF NaN, -1
  uint32_t max_shared_bytes = emulator::max_shared_bytes(Card::kSm80);  // of a block
  bool has_wgmma = false;
  // A word that new device memory is filled with and that no kernel may copy (cp.async): so a test sees what is copied though
  // nobody wrote it, also where nobody looks at it then. 0: not looked for.
  uint32_t unwritten = 0;

  void set_card(Card card) {
    max_shared_bytes = emulator::max_shared_bytes(card);
    has_wgmma = card == Card::kSm90;
  }
};
// Of this thread; read at each launch. The environment sets the first values: RESTKV_EMULATOR_ORDER
// = forward | reverse | shuffled:SEED, RESTKV_EMULATOR_TIMING = at_once | late | mixed:SEED, RESTKV_EMULATOR_POISON = 0xFF,
// RESTKV_EMULATOR_CARD = sm_80 | sm_90; an emulated device (emulated_backend.h) sets the card of the threads that use it.
Options& options();
Card default_card();  // of the environment; sm_80

// What launches of this thread did so far.
struct Counters {
  int64_t launches = 0;
  int64_t blocks = 0;
  int64_t switches = 0;
};
Counters& counters();

struct GridSize {
  uint32_t x, y, z;
};
using KernelCall = void (*)(const void* call);
void run_grid(GridSize grid, uint32_t block, uint32_t smem, KernelCall kernel, const void* call);

// Every checked call of the emulated device, launches included, asks here for its result: 0, or what a test asked for.
int next_call_error();
// The k-th call of any thread from now on (1: the next) fails with `code`; k = 0: none does.
void fail_call(int64_t k, int code);
int64_t num_calls();

// For hooks that look at accesses (access_counters.h): whether a thread of a kernel runs now, its block's shared memory, and the
// room that its stack has.
bool is_in_kernel();
uint32_t shared_bytes();
inline constexpr size_t kFiberStackBytes = size_t{256} << 10;

}  // namespace restkv::emulator
