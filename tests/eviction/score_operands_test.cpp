// What score makes for its products on the tensor cores is written whole before it is copied: initcheck of a card sees each byte that is
// not, no answer does.
#include "tests/emulator/emulator.h"
#include "tests/eviction/score_case.h"

namespace restkv {
namespace {

using testing::EvictionCase;
using testing::run_score;

class ScoreOperands : public ::testing::Test {
 protected:
  ScoreOperands() {
    emulator::options().unwritten = 0x9E3779B9u;
    emulator::options().timing = emulator::Timing::kAtOnce;  // nothing is left to run behind what fails
  }
  ~ScoreOperands() override { emulator::options() = kept_; }

 private:
  const emulator::Options kept_ = emulator::options();
};

TEST_F(ScoreOperands, AreWrittenBeforeTheyAreCopied) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const auto& [dim, queries] : {std::pair{40, 5}, {64, 33}, {72, 20}, {128, 32}}) {
      SCOPED_TRACE(::testing::Message()
                   << dtype_info(dtype).name << " dim " << dim << " queries " << queries);
      // its workspace is new, and so is all that is copied from it
      const std::unique_ptr<Backend> backend =
          with_host_memory(make_emulated_backend({.workspace_bytes = int64_t{4} << 20}));
      EvictionCase c({.heads = 4,
                      .kv_heads = 2,
                      .dim = dim,
                      .rows = 140,
                      .queries = queries,
                      .dtype = dtype,
                      .has_half_queries = true});
      const std::vector<float> scores = run_score(*backend, c, {.kind = ScoreKind::kIndicatorQuery});
      EXPECT_GT(scores[0], 0.0f);
    }
  }
}

}  // namespace
}  // namespace restkv
