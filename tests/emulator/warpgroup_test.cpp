// What the emulator says to each mistake a kernel can make with the products of a warpgroup. That a right kernel gives the
// right products: tests/kernels/wgmma_test.cpp.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/swizzled_tiles.h"

namespace restkv::cuda {
namespace {

using emulator::EmulatorError;
using emulator::Order;

enum class Mistake : uint8_t {
  kNone,
  kNoProxyFence,
  kNoFence,
  kTileOffPattern,
  kTileBehindTheEnd,
  kThreadMissing,
  kThreadKeepsRegisters,
  kOtherPlace,
  kOtherTile,
  kReadsEarly,
  kNoCommit,
  kWaitsForLess,
  kNoWait,
  kWritesSums,
  kWritesOperand,
  kCopiesOverOperand,
  kWritesWeights,
};

struct MistakeParams {
  const bf16* in;  // [64, 64]
  float* out;      // [64, 64]
  Mistake mistake;
};
using Tile = SwizzledTile<bf16, 64, 64>;
struct MistakeShared {
  bf16 a[Tile::kElements];
  bf16 b[Tile::kElements];
};

// out = in in^T + in in. Wrong in one way, unless kNone.
__global__ void __launch_bounds__(128) mistake_kernel(const __grid_constant__ MistakeParams p) {
  auto& shared = *shared_memory<MistakeShared>();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto is = [&](Mistake mistake) { return p.mistake == mistake; };
  for (int32_t i = thread; i < 64 * 8; i += 128) {
    const int32_t row = i / 8, column = i % 8 * 8;
    cp_async16(shared.a + Tile::at(row, column), p.in + row * 64 + column);
    cp_async16(shared.b + Tile::at(row, column), p.in + row * 64 + column);
  }
  cp_async_commit();
  cp_async_wait<0>();
  if (!is(Mistake::kNoProxyFence) || thread != 77) fence_proxy_async();
  sync_threads();

  const int32_t row = thread / 32 * 16 + thread % 32 / 4, c = thread % 4 * 2;
  uint32_t weights[4][4];
  for (int32_t k = 0; k < 4; ++k)
    for (int32_t i = 0; i < 4; ++i)
      weights[k][i] = load_vector<uint32_t>(p.in + (row + i % 2 * 8) * 64 + k * 16 + c + i / 2 * 8);
  if (!is(Mistake::kThreadKeepsRegisters) || thread != 5) take_registers<240>();
  float s[8][4];
  if (!is(Mistake::kNoFence)) wgmma_fence();
  multiply_keys<Tile, Tile>(s, shared.a, shared.b);
  multiply_values<Tile>(s, weights, shared.b);
  if (is(Mistake::kTileOffPattern)) {
    wgmma_shared<bf16>(s, wgmma_tile(shared.a + 64, 16, 1024), wgmma_tile(shared.b, 16, 1024), true);
  }
  if (is(Mistake::kTileBehindTheEnd)) {
    wgmma_shared<bf16>(s, wgmma_tile(shared.a, 16, 1024), wgmma_tile(shared.b, 16, 2048), true);
  }
  if (is(Mistake::kThreadMissing) && thread != 5) multiply_values<Tile>(s, weights, shared.b);
  if (is(Mistake::kOtherPlace)) {
    if (thread < 32) {
      wgmma_registers<bf16>(s, weights[0], wgmma_tile(shared.b, 16, 1024));
    } else {
      wgmma_registers<bf16>(s, weights[0], wgmma_tile(shared.b, 16, 1024));
    }
  }
  if (is(Mistake::kOtherTile))
    wgmma_registers<bf16>(s, weights[0], wgmma_tile(thread < 32 ? shared.a : shared.b, 16, 1024));
  if (!is(Mistake::kNoCommit)) wgmma_commit();
  const float early = s[0][0];
  if (is(Mistake::kWritesSums) && thread == 9) s[3][1] += 1.0f;
  if (is(Mistake::kWritesOperand) && thread == 9) shared.b[130].bits ^= 1;
  if (is(Mistake::kCopiesOverOperand) && thread == 9) {
    cp_async16(shared.b, p.in + 64);
    cp_async_commit();
    cp_async_wait<0>();
  }
  if (is(Mistake::kWritesWeights) && thread == 9) weights[3][1] ^= 1;
  if (is(Mistake::kNoWait)) return;
  if (is(Mistake::kWaitsForLess)) {
    wgmma_wait<1>(s);
  } else {
    wgmma_wait<0>(s);
  }
  if (is(Mistake::kReadsEarly)) s[0][0] = early;
  for (int32_t n = 0; n < 8; ++n)
    for (int32_t e = 0; e < 4; ++e) p.out[(row + e / 2 * 8) * 64 + n * 8 + c + e % 2] = s[n][e];
}

class Warpgroup : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override {
    kept_ = emulator::options();
    emulator::options().order = GetParam();
    emulator::options().set_card(emulator::Card::kSm90);
    for (size_t i = 0; i < 64 * 64; ++i) {
      values_.push_back(static_cast<float>(i * 7 % 5) - 2.0f);
      in_.push_back(from_f32<bf16>(values_.back()));
    }
  }
  void TearDown() override { emulator::options() = kept_; }

  std::string error_of(Mistake mistake) {
    out_.assign(64 * 64, 0.0f);
    try {
      launch(mistake_kernel, {}, 128, sizeof(MistakeShared), nullptr,
             MistakeParams{in_.data(), out_.data(), mistake});
    } catch (const EmulatorError& error) {
      return error.what();
    }
    return "none";
  }

  emulator::Options kept_;
  std::vector<float> values_, out_;
  std::vector<bf16> in_;
};
INSTANTIATE_TEST_SUITE_P(Orders, Warpgroup,
                         testing::Values(Order::kForward, Order::kReverse, Order::kShuffled));

TEST_P(Warpgroup, ARightKernel) {
  ASSERT_EQ(error_of(Mistake::kNone), "none");
  for (size_t m = 0; m < 64; ++m) {
    for (size_t n = 0; n < 64; ++n) {
      float expected = 0.0f;
      for (size_t k = 0; k < 64; ++k)
        expected += values_[m * 64 + k] * (values_[n * 64 + k] + values_[k * 64 + n]);
      ASSERT_EQ(out_[m * 64 + n], expected) << m << " " << n;
    }
  }
}

TEST_P(Warpgroup, MistakesAreReported) {
  const struct {
    Mistake mistake;
    const char* message;
  } cases[] = {
      {Mistake::kNoProxyFence, "cp.async of thread 77 wrote, without fence_proxy_async()"},
      {Mistake::kNoFence, "without wgmma_fence() since the last wait"},
      {Mistake::kTileOffPattern, "does not begin at a multiple of 1024 bytes"},
      {Mistake::kTileBehindTheEnd, "bytes of shared memory"},
      {Mistake::kThreadMissing, "waits in wgmma"},
      {Mistake::kThreadKeepsRegisters, "while other threads of the warpgroup are in"},
      {Mistake::kOtherPlace, "while other threads of the warpgroup are in wgmma"},
      {Mistake::kOtherTile, "ask for different products"},
      {Mistake::kNoCommit, "taken before the wait for its group"},
      {Mistake::kWaitsForLess, "taken before the wait for its group"},
      {Mistake::kNoWait, "a thread ends with wgmma on its way"},
      {Mistake::kWritesSums, "sums of a wgmma were written while it was on its way"},
      {Mistake::kWritesOperand, "shared memory that a wgmma reads was written"},
      {Mistake::kCopiesOverOperand, "wgmma reads what cp.async of thread 9 wrote"},
      {Mistake::kWritesWeights, "registers that a wgmma reads were written"},
  };
  for (const auto& c : cases) {
    const std::string error = error_of(c.mistake);
    EXPECT_NE(error.find(c.message), std::string::npos) << c.message << ": " << error;
  }
}

TEST_P(Warpgroup, SumsReadBeforeTheWaitArePoison) {
  ASSERT_EQ(error_of(Mistake::kReadsEarly), "none");
  EXPECT_TRUE(std::isnan(out_[0]));
}

TEST_P(Warpgroup, OtherCardsHaveNone) {
  emulator::options().set_card(emulator::Card::kSm80);
  EXPECT_NE(error_of(Mistake::kNone).find("wgmma on a card that has none"), std::string::npos);
}

}  // namespace
}  // namespace restkv::cuda
