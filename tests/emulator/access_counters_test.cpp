// Banks and sectors of kernels that leave no doubt about them.
#include "tests/emulator/access_counters.h"

#include <gtest/gtest.h>

#include "tests/emulator/counted_kernels.h"

namespace restkv::emulator {
namespace {

using cuda::Touch;

struct Case {
  Touch touch;
  int32_t step, first;
  int64_t passes, least_passes, sectors, least_sectors;  // of the access in question
};

TEST(AccessCounters, KnownKernels) {
  const Case cases[] = {
      // Floats: 32 banks of 4 bytes.
      {Touch::kSharedFloat, 1, 0, 1, 1, 0, 0},
      {Touch::kSharedFloat, 0, 0, 1, 1, 0, 0},  // all lanes one word
      {Touch::kSharedFloat, 2, 0, 2, 1, 0, 0},
      {Touch::kSharedFloat, 33, 0, 1, 1, 0, 0},
      {Touch::kSharedFloat, 32, 0, 32, 1, 0, 0},
      // 16 bytes go by quarter warps: four passes at least.
      {Touch::kSharedVector, 4, 0, 4, 4, 0, 0},
      {Touch::kSharedVector, 8, 0, 8, 4, 0, 0},
      {Touch::kSharedVector, 36, 0, 4, 4, 0, 0},   // rows of 128 bytes, padded
      {Touch::kSharedVector, 32, 0, 32, 4, 0, 0},  // and not
      // A warp's 128 bytes are four sectors of 32.
      {Touch::kGlobalFloat, 1, 0, 0, 0, 4, 4},
      {Touch::kGlobalFloat, 1, 1, 0, 0, 5, 4},  // off by one float
      {Touch::kGlobalFloat, 2, 0, 0, 0, 8, 4},
      {Touch::kGlobalFloat, 8, 0, 0, 0, 32, 4},
      {Touch::kGlobalFloat, 0, 0, 0, 0, 1, 1},
      {Touch::kGlobalHalf, 1, 0, 0, 0, 2, 2},
      {Touch::kGlobalHalf, 4, 0, 0, 0, 8, 2},
      // What the hooks do not see and the emulator reports itself.
      {Touch::kAsyncCopy, 4, 0, 4, 4, 16, 16},
      {Touch::kAsyncCopy, 32, 0, 32, 4, 16, 16},
      {Touch::kLdMatrix, 36, 0, 4, 4, 0, 0},
      {Touch::kLdMatrix, 32, 0, 32, 4, 0, 0},
  };
  for (const Case& c : cases) {
    for (const uint32_t blocks : {1u, 3u}) {
      static_cast<void>(take_access_counts());
      cuda::run_counted(c.touch, c.step, c.first, blocks);
      const AccessCounts counts = take_access_counts();
      const std::string what = "touch " + std::to_string(static_cast<int>(c.touch)) + " step " +
                               std::to_string(c.step) + " blocks " + std::to_string(blocks);
      EXPECT_EQ(counts.shared_passes, c.passes * blocks) << what;
      EXPECT_EQ(counts.shared_least, c.least_passes * blocks) << what;
      EXPECT_EQ(counts.global_sectors, (c.sectors + 4) * blocks) << what;  // and the dense write of all
      EXPECT_EQ(counts.global_least, (c.least_sectors + 4) * blocks) << what;
      // A place is listed where it takes more than the least, and says so of the right memory.
      const bool is_bad = c.passes > c.least_passes || c.sectors > c.least_sectors;
      ASSERT_EQ(counts.worst.size(), is_bad ? 1u : 0u) << what;
      if (!is_bad) continue;
      EXPECT_EQ(counts.worst[0].is_shared, c.passes > c.least_passes) << what;
      EXPECT_EQ(counts.worst[0].used,
                (c.passes + c.sectors) * blocks - (c.touch == Touch::kAsyncCopy ? c.sectors * blocks : 0))
          << what;
    }
  }
}

}  // namespace
}  // namespace restkv::emulator
