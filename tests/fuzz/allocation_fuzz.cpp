// Any bytes as an allocation file: an error that says so, or tables from which every budget can be planned.
#include <cstdint>
#include <numeric>
#include <string_view>

#include "engine/eviction/allocation_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  static const ModelConfig config = [] {
    ModelConfig c;
    c.architecture = "A";
    c.num_layers = c.num_kv_heads = c.num_heads = c.head_dim = c.hidden_size = c.vocab_size = 2;
    return c;
  }();
  const Result<AllocationTables> tables =
      parse_allocation({reinterpret_cast<const char*>(data), size}, config);
  if (!tables.ok()) {
    CHECK(tables.status().message().starts_with("allocation file: ")) << tables.status().message();
    return 0;
  }
  for (const DecodeMode mode : {DecodeMode::kEvict, DecodeMode::kGrow}) {
    CacheSettings settings;
    settings.allocation = Allocation::kCalibrated;
    settings.decode = mode;
    for (const int32_t budget : {64, 100, 5000}) {
      settings.budget = budget;
      const SequenceBudget plan = plan_budget(settings, {2, 2, {}}, &tables->of(mode), 1 << 20, 10);
      const int64_t sum = std::accumulate(plan.c_lh.begin(), plan.c_lh.end(), int64_t{0});
      CHECK(sum == 4 * int64_t{budget}) << sum;
    }
  }
  return 0;
}
