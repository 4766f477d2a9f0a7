// Each primitive against what the PTX manual says of it, and each mistake a kernel can make against the emulator's report.
// Kernels of this file are written as in kernels/cuda; those that are wrong say so.
#include <gtest/gtest.h>

#include <chrono>

#include <random>
#include <set>
#include <vector>

#include "emulator/device_queue.h"
#include "kernels/base/device_error.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/patience.h"
#include "kernels/cuda/tile.h"

namespace restkv::cuda {
namespace {

using emulator::DeviceQueue;
using emulator::EmulatorError;
using emulator::Order;
using emulator::Timing;

class Emulator : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override {
    kept_ = emulator::options();
    emulator::options().order = GetParam();
  }
  void TearDown() override {
    emulator::options() = kept_;
    emulator::fail_call(0, 0);
  }
  emulator::Options kept_;
};
INSTANTIATE_TEST_SUITE_P(Orders, Emulator,
                         testing::Values(Order::kForward, Order::kReverse, Order::kShuffled));

template <class F>
std::string error_of(F&& run) {
  try {
    run();
  } catch (const EmulatorError& error) {
    return error.what();
  }
  return "none";
}

struct ArrayParams {
  const float* in;  // [n]
  float* out;       // [n]
  int n;
};

// Each block reverses its 256 values through shared memory.
__global__ void __launch_bounds__(256) reverse_kernel(const __grid_constant__ ArrayParams p) {
  float* values = shared_memory<float>();
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
  values[threadIdx.x] = p.in[at];
  sync_threads();
  p.out[at] = values[blockDim.x - 1 - threadIdx.x];
}
// Wrong: no barrier.
__global__ void __launch_bounds__(256) racing_reverse_kernel(const __grid_constant__ ArrayParams p) {
  float* values = shared_memory<float>();
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
  values[threadIdx.x] = p.in[at];
  p.out[at] = values[blockDim.x - 1 - threadIdx.x];
}

std::vector<float> rising(size_t n) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = static_cast<float>(i);
  return values;
}

TEST_P(Emulator, BlocksShareMemoryBehindABarrier) {
  const std::vector<float> in = rising(1024);
  std::vector<float> out(1024, NAN);
  launch(reverse_kernel, {.x = 4}, 256, 1024, nullptr, ArrayParams{in.data(), out.data(), 1024});
  for (size_t i = 0; i < 1024; ++i) ASSERT_EQ(out[i], static_cast<float>(i / 256 * 256 + 255 - i % 256));
}

TEST_P(Emulator, AMissingBarrierReadsPoison) {
  const std::vector<float> in = rising(256);
  std::vector<float> out(256, 0.0f);
  launch(racing_reverse_kernel, {.x = 1}, 256, 1024, nullptr, ArrayParams{in.data(), out.data(), 256});
  const auto poisoned = std::count_if(out.begin(), out.end(), [](float v) { return std::isnan(v); });
  EXPECT_GT(poisoned, 64);
}

// Wrong: the last thread never comes.
__global__ void missing_thread_kernel(const __grid_constant__ ArrayParams p) {
  if (threadIdx.x + 1 == blockDim.x) return;
  sync_threads();
  p.out[threadIdx.x] = 1.0f;
}
// Wrong: two places.
__global__ void two_places_kernel(const __grid_constant__ ArrayParams) {
  if (threadIdx.x < 32) {
    sync_threads();
  } else {
    sync_threads();
  }
}
// Wrong: half a warp in a shuffle of the whole.
__global__ void half_shuffle_kernel(const __grid_constant__ ArrayParams p) {
  if (lane_idx() < 16) p.out[threadIdx.x] = shuffle(1.0f, 0);
}
// Wrong: lanes in different functions.
__global__ void mixed_kernel(const __grid_constant__ ArrayParams) {
  if (lane_idx() % 2 == 0) {
    ballot(true);
  } else {
    sync_warp();
  }
}
TEST_P(Emulator, DivergenceIsReported) {
  std::vector<float> out(64);
  const ArrayParams params{nullptr, out.data(), 64};
  EXPECT_NE(error_of([&] { launch(missing_thread_kernel, {}, 64, 0, nullptr, params); }).find("returned"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] { launch(two_places_kernel, {}, 64, 0, nullptr, params); }).find("wait in the one at"),
      std::string::npos);
  EXPECT_NE(
      error_of([&] { launch(half_shuffle_kernel, {}, 64, 0, nullptr, params); }).find("waits in shuffle"),
      std::string::npos);
  EXPECT_NE(error_of([&] { launch(mixed_kernel, {}, 64, 0, nullptr, params); }).find("other lanes"),
            std::string::npos);
}

TEST_P(Emulator, LaunchesThatTheCardRefuses) {
  const ArrayParams params{nullptr, nullptr, 0};
  EXPECT_THROW(launch(mixed_kernel, {}, 48, 0, nullptr, params), EmulatorError);
  EXPECT_THROW(launch(mixed_kernel, {}, 2048, 0, nullptr, params), EmulatorError);
  EXPECT_THROW(launch(mixed_kernel, {.x = 0}, 32, 0, nullptr, params), EmulatorError);
  EXPECT_THROW(launch(mixed_kernel, {.x = 1, .y = 70000}, 32, 0, nullptr, params), EmulatorError);
  EXPECT_THROW(launch(mixed_kernel, {}, 32, 200 << 10, nullptr, params), EmulatorError);
}

#if !defined(__SANITIZE_ADDRESS__)  // which ends the process at the write
// Wrong: one value behind the end.
__global__ void overrun_kernel(const __grid_constant__ ArrayParams p) { shared_memory<float>()[p.n] = 0.0f; }
TEST_P(Emulator, AWriteBehindSharedMemoryIsReported) {
  EXPECT_NE(error_of([] {
              launch(overrun_kernel, {}, 32, 400, nullptr, ArrayParams{nullptr, nullptr, 100});
            }).find("behind its shared memory"),
            std::string::npos);
}
#endif

TEST_P(Emulator, AFailedLaunchIsADeviceError) {
  std::vector<float> out(256);
  const std::vector<float> in = rising(256);
  const ArrayParams params{in.data(), out.data(), 256};
  emulator::fail_call(2, 700);
  launch(reverse_kernel, {}, 256, 1024, nullptr, params);
  try {
    const OpScope scope({.name = "reverse", .in = {3, 5}, .out = {3, 6}, .layer = 2});
    launch(reverse_kernel, {}, 256, 1024, nullptr, params);
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_TRUE(error.is_sticky());
    EXPECT_NE(std::string(error.what()).find("illegal address) in reverse [3, 5] -> [3, 6] of layer 2:"),
              std::string::npos)
        << error.what();
  }
}

// Behind these no call works: the process has to end, or its requests would fail for ever.
TEST_P(Emulator, CodesOfALostDevice) {
  const auto is_sticky = [](int code) {
    try {
      CUDA_CHECK(code);
      return false;
    } catch (const DeviceError& error) {
      return error.is_sticky();
    }
  };
  for (const int code : {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810})
    EXPECT_TRUE(is_sticky(code)) << code;
  for (const int code : {1, 2, 701, 901}) EXPECT_FALSE(is_sticky(code)) << code;
}

struct WarpParams {
  uint32_t* out;  // [8, 32]
};
__global__ void __launch_bounds__(32) warp_kernel(const __grid_constant__ WarpParams p) {
  const uint32_t lane = lane_idx();
  uint32_t* out = p.out + lane;
  out[0] = shuffle(lane * 3, 7);
  out[32] = shuffle_xor(lane, 5u);
  out[64] = shuffle_up(lane, 3);
  out[96] = shuffle_down(lane, 3);
  out[128] = ballot(lane % 3 == 0);
  out[160] = (any(lane == 31) ? 1u : 0u) + (any(false) ? 2u : 0u) + (all(lane < 32) ? 4u : 0u) +
             (all(lane < 31) ? 8u : 0u);
  const uint64_t wide = shuffle(uint64_t{lane} << 40, 9);
  out[192] = static_cast<uint32_t>(wide >> 40);
  // both halves at the same time, each with its own mask
  out[224] = lane < 16 ? shuffle(lane, 3, 0xFFFFu) : shuffle(lane, 20, 0xFFFF0000u);
}

TEST_P(Emulator, ShufflesAndVotes) {
  std::vector<uint32_t> out(256);
  launch(warp_kernel, {}, 32, 0, nullptr, WarpParams{out.data()});
  for (uint32_t i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i], 21u);
    EXPECT_EQ(out[32 + i], i ^ 5u);
    EXPECT_EQ(out[64 + i], i < 3 ? i : i - 3);
    EXPECT_EQ(out[96 + i], i + 3 > 31 ? i : i + 3);
    EXPECT_EQ(out[128 + i], 0x49249249u);
    EXPECT_EQ(out[160 + i], 5u);
    EXPECT_EQ(out[192 + i], 9u);
    EXPECT_EQ(out[224 + i], i < 16 ? 3u : 20u);
  }
}

struct CountParams {
  uint32_t* counter;   // [1]
  float* sum;          // [1]
  int32_t* most;       // [1]
  uint64_t* smallest;  // [1] by compare-and-swap
};
__global__ void __launch_bounds__(64) count_kernel(const __grid_constant__ CountParams p) {
  const uint32_t at = blockIdx.x * 64 + threadIdx.x;
  atomic_add(p.counter, 1u);
  atomic_add(p.sum, 0.5f);
  atomic_max(p.most, static_cast<int32_t>(at));
  uint64_t seen = *p.smallest;
  const uint64_t own = (uint64_t{1} << 40) + at;
  while (own < seen) {
    const uint64_t old = atomic_cas(p.smallest, seen, own);
    if (old == seen) break;
    seen = old;
  }
}

TEST_P(Emulator, Atomics) {
  uint32_t counter = 0;
  float sum = 0.0f;
  int32_t most = -5;
  uint64_t smallest = ~uint64_t{0};
  launch(count_kernel, {.x = 5}, 64, 0, nullptr, CountParams{&counter, &sum, &most, &smallest});
  EXPECT_EQ(counter, 320u);
  EXPECT_EQ(sum, 160.0f);
  EXPECT_EQ(most, 319);
  EXPECT_EQ(smallest, uint64_t{1} << 40);
}

struct CopyParams {
  const float* in;  // [4, 32]
  float* out;       // [4, 32]
  int early;        // reads before the wait
  int leave;        // ends with copies in flight
};
__global__ void __launch_bounds__(32) copy_kernel(const __grid_constant__ CopyParams p) {
  float* stages = shared_memory<float>();  // [2, 32]
  const auto issue = [&](uint32_t row) {
    if (threadIdx.x < 8) {
      cp_async16(stages + row % 2 * 32 + threadIdx.x * 4, p.in + row * 32 + threadIdx.x * 4,
                 row == 3 && threadIdx.x == 7 ? 8 : 16);
    }
    cp_async_commit();
  };
  issue(0);
  for (uint32_t row = 0; row < 4; ++row) {
    if (row < 3) issue(row + 1);
    if (row < 3) {
      cp_async_wait<1>();
    } else if (p.leave == 0) {
      cp_async_wait<0>();
    }
    sync_warp();
    p.out[row * 32 + threadIdx.x] = stages[(p.early != 0 && row < 3 ? row + 1 : row) % 2 * 32 + threadIdx.x];
    sync_warp();
  }
}

TEST_P(Emulator, CopiesLandAtTheWait) {
  const std::vector<float> in = rising(128);
  std::vector<float> out(128, NAN);
  launch(copy_kernel, {}, 32, 256, nullptr, CopyParams{in.data(), out.data(), 0, 0});
  for (size_t i = 0; i < 126; ++i) ASSERT_EQ(out[i], static_cast<float>(i));
  EXPECT_EQ(out[126], 0.0f) << "behind the valid bytes";
  launch(copy_kernel, {}, 32, 256, nullptr, CopyParams{in.data(), out.data(), 1, 0});
  for (size_t i = 0; i < 96; ++i) ASSERT_TRUE(std::isnan(out[i])) << "read before it landed";
  EXPECT_NE(error_of([&] {
              launch(copy_kernel, {}, 32, 256, nullptr, CopyParams{in.data(), out.data(), 0, 1});
            }).find("in flight"),
            std::string::npos);
}

struct VectorParams {
  const float* in;
  float* out;
};
// Wrong unless `in` is a multiple of 16 bytes.
__global__ void __launch_bounds__(32) vector_kernel(const __grid_constant__ VectorParams p) {
  if (threadIdx.x == 0) store_vector(p.out, load_vector<float4>(p.in));
}

TEST_P(Emulator, MisalignedVectorsAreReported) {
  alignas(16) const float in[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  alignas(16) float out[4] = {};
  launch(vector_kernel, {}, 32, 0, nullptr, VectorParams{in, out});
  EXPECT_EQ(out[3], 3.0f);
  EXPECT_NE(error_of([&] {
              launch(vector_kernel, {}, 32, 0, nullptr, VectorParams{in + 1, out});
            }).find("misaligned"),
            std::string::npos);
}

// One product of a warp through shared memory, operands stored as they are or transposed.
template <class T>
struct ProductParams {
  const float* a;  // [16, 16] m, k
  const float* b;  // [16, 8] k, n
  float* d;        // [16, 8]
  float* chained;  // [16, 8] d2 = (d | d) * b, with the accumulators as operand
  int transposed;
};
template <class T>
struct ProductTiles {
  T a[16 * 24];
  T b[16 * 24];
};
template <class T>
__global__ void __launch_bounds__(32) product_kernel(const __grid_constant__ ProductParams<T> p) {
  auto& tiles = *shared_memory<ProductTiles<T>>();
  for (uint32_t i = threadIdx.x; i < 256; i += 32) {
    const uint32_t m = i / 16, k = i % 16;
    tiles.a[p.transposed != 0 ? k * 24 + m : m * 24 + k] = from_f32<T>(p.a[i]);
  }
  for (uint32_t i = threadIdx.x; i < 128; i += 32) {
    const uint32_t k = i / 8, n = i % 8;
    tiles.b[p.transposed != 0 ? k * 24 + n : n * 24 + k] = from_f32<T>(p.b[i]);
  }
  sync_warp();
  MmaA<T> a;
  MmaB<T> b;
  if (p.transposed != 0) {
    load_a_trans(a, tiles.a, 24);
    load_b_trans(b, tiles.b, 24);
  } else {
    load_a(a, tiles.a, 24);
    load_b(b, tiles.b, 24);
  }
  const uint32_t g = lane_idx() / 4, t = lane_idx() % 4;
  const auto put = [&](float* out, const float(&d)[4]) {
    out[g * 8 + 2 * t] = d[0];
    out[g * 8 + 2 * t + 1] = d[1];
    out[(g + 8) * 8 + 2 * t] = d[2];
    out[(g + 8) * 8 + 2 * t + 1] = d[3];
  };
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma(d, a, b);
  put(p.d, d);
  MmaA<T> again;
  a_from_accumulators(again, d, d);
  float chained[4] = {};
  mma(chained, again, b);
  put(p.chained, chained);
}

template <class T>
void check_product() {
  std::mt19937 random(3);
  std::uniform_int_distribution<int> small(-4, 4);  // exact in every type
  std::vector<float> a(256), b(128), d(128), chained(128);
  for (float& v : a) v = static_cast<float>(small(random));
  for (float& v : b) v = static_cast<float>(small(random)) / 4.0f;
  for (const int transposed : {0, 1}) {
    launch(product_kernel<T>, {}, 32, sizeof(ProductTiles<T>), nullptr,
           ProductParams<T>{a.data(), b.data(), d.data(), chained.data(), transposed});
    for (size_t m = 0; m < 16; ++m) {
      for (size_t n = 0; n < 8; ++n) {
        float expected = 1.0f, expected_chained = 0.0f;
        for (size_t k = 0; k < 16; ++k) expected += a[m * 16 + k] * b[k * 8 + n];
        ASSERT_EQ(d[m * 8 + n], expected) << m << " " << n;
        for (size_t k = 0; k < 16; ++k)
          expected_chained += to_f32(from_f32<T>(d[m * 8 + k % 8])) * b[k * 8 + n];
        ASSERT_EQ(chained[m * 8 + n], expected_chained) << m << " " << n;
      }
    }
  }
}

TEST_P(Emulator, TensorCoreProducts) {
  check_product<bf16>();
  check_product<f16>();
  check_product<float>();
}

struct BlockRaceParams {
  float* value;  // [1]
};
// Wrong: the last block to write wins.
__global__ void __launch_bounds__(32) block_race_kernel(const __grid_constant__ BlockRaceParams p) {
  if (threadIdx.x == 0) *p.value = static_cast<float>(blockIdx.x);
}

// What was added is done in order and once: at once, no sooner than it is waited for, or anywhere in between.
TEST(DeviceQueue, DoesItsWorkInOrderWhenItIsTime) {
  for (const Timing timing : {Timing::kAtOnce, Timing::kLate, Timing::kMixed}) {
    std::set<size_t> seen;  // how much was done when what stands before a mark was waited for
    for (uint64_t seed = 0; seed < 400; ++seed) {
      DeviceQueue queue(timing, seed);
      std::vector<int> done;
      const auto add = [&](int number) { queue.add([&done, number] { done.push_back(number); }); };
      queue.wait_for(0);  // none stands anywhere
      for (int i = 0; i < 4; ++i) add(i);
      queue.mark(1);
      for (int i = 4; i < 8; ++i) add(i);
      if (timing == Timing::kLate) {
        EXPECT_TRUE(done.empty());
      }
      queue.wait_for(1);
      EXPECT_GE(done.size(), 4u);
      seen.insert(done.size());
      queue.wait();
      EXPECT_EQ(done, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
    }
    const std::set<size_t> some = {4, 5, 6, 7, 8};
    EXPECT_EQ(seen, timing == Timing::kMixed    ? some
                    : timing == Timing::kAtOnce ? std::set<size_t>{8}
                                                : std::set<size_t>{4});
  }
}

// Work that throws is not done again, and the work behind it is.
TEST(DeviceQueue, AFailureIsSeenWhereItIsWaitedFor) {
  DeviceQueue queue(Timing::kLate, 1);
  int done = 0;
  queue.add([&] { ++done; });
  queue.add([] { throw DeviceError("it failed", false); });
  queue.add([&] { ++done; });
  EXPECT_THROW(queue.wait(), DeviceError);
  EXPECT_EQ(done, 1);
  queue.wait();
  EXPECT_EQ(done, 2);
}

// A card that has much to do is not one that hangs.
TEST(Patience, EndsWhereNothingIsFinished) {
  using std::chrono::seconds;
  const cuda::Patience::Time start{};
  cuda::Patience patience(start, 5, seconds(10));
  EXPECT_FALSE(patience.is_over(start + seconds(9), 5));
  EXPECT_FALSE(patience.is_over(start + seconds(12), 6)) << "it came past a beat";
  EXPECT_FALSE(patience.is_over(start + seconds(21), 6));
  EXPECT_FALSE(patience.is_over(start + seconds(100), 9));
  EXPECT_TRUE(patience.is_over(start + seconds(111), 9));
  cuda::Patience hung(start, 0, seconds(10));
  EXPECT_TRUE(hung.is_over(start + seconds(11), 0));
}

TEST(EmulatorOrders, ARaceOfBlocksGivesDifferentAnswers) {
  const emulator::Options kept = emulator::options();
  float forward = -1.0f, reverse = -1.0f;
  emulator::options().order = Order::kForward;
  launch(block_race_kernel, {.x = 8}, 32, 0, nullptr, BlockRaceParams{&forward});
  emulator::options().order = Order::kReverse;
  launch(block_race_kernel, {.x = 8}, 32, 0, nullptr, BlockRaceParams{&reverse});
  emulator::options() = kept;
  EXPECT_EQ(forward, 7.0f);
  EXPECT_EQ(reverse, 0.0f);
}

struct PingPongParams {
  float* out;  // [1]
  int frees;   // how often the consumer says that the slot is free; 3 times somebody waits for it
};
// A producer warp and a consumer warp with named barriers.
__global__ void __launch_bounds__(64) ping_pong_kernel(const __grid_constant__ PingPongParams p) {
  float* slot = shared_memory<float>();
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) {
    if (warp_idx() == 0) {
      if (i > 0) barrier_sync(2, 64);  // the slot is free
      if (lane_idx() == 0) *slot = static_cast<float>(i + 1);
      barrier_arrive(1, 64);
    } else {
      barrier_sync(1, 64);  // the slot is full
      sum += *slot;
      if (i < p.frees) barrier_arrive(2, 64);
    }
  }
  if (threadIdx.x == 32) *p.out = sum;
}

TEST_P(Emulator, NamedBarriers) {
  float out = 0.0f;
  launch(ping_pong_kernel, {}, 64, 4, nullptr, PingPongParams{&out, 3});
  EXPECT_EQ(out, 10.0f);
  EXPECT_NE(error_of([&] {
              launch(ping_pong_kernel, {}, 64, 4, nullptr, PingPongParams{&out, 4});
            }).find("barrier 2 is left with 32 threads"),
            std::string::npos);
}

}  // namespace
}  // namespace restkv::cuda
