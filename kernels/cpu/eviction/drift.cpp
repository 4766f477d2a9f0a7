// A threshold and a sum, no sort.
#include "kernels/cpu/eviction/drift.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/eviction/row_tile.h"
#include "kernels/cpu/eviction/score_key.h"

namespace restkv::cpu {
namespace {

// The smallest of the `wanted` largest values, by three counting passes over 11, 11 and 10 bits; and how many of the values
// equal to it belong to them.
struct Threshold {
  uint32_t value = 0;
  int64_t num_equal = 0;
};
Threshold find_threshold(const std::vector<uint32_t>& values, int64_t wanted) {
  Threshold threshold{.value = 0, .num_equal = wanted};
  constexpr std::array<int, 3> kShifts = {21, 10, 0};
  uint32_t mask = 0;
  for (const int shift : kShifts) {
    std::array<int32_t, 2048> counts{};
    for (const uint32_t v : values) {
      if ((v & mask) == threshold.value) ++counts[(v >> shift) & (shift == 0 ? 1023u : 2047u)];
    }
    size_t bin = counts.size() - 1;
    while (counts[bin] < threshold.num_equal && bin > 0) threshold.num_equal -= counts[bin--];
    threshold.value |= static_cast<uint32_t>(bin) << shift;
    mask |= (shift == 0 ? 1023u : 2047u) << shift;
  }
  return threshold;
}

}  // namespace

void mean_top_index(const ObserveArgs& args, const TileKernels& kernels, const ObserveItem& item,
                    int32_t head, int64_t query) {
  const AttentionShape& shape = args.shape;
  const int64_t dim = shape.head_dim;
  const int32_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const HeadRows rows(item.rows, shape, args.cache, kv_head);
  const int64_t n = rows.num_rows;
  const int64_t wanted = std::min<int64_t>(item.drift_rows[kv_head], n);
  float* keys = thread_floats(Buffer::kKeys, kTileRows * dim);
  float* q = thread_floats(Buffer::kQueries, dim);
  load_queries(item.queries, shape, args.cache, head, query, 1, 1, shape.scale, q);
  const int32_t query_position = item.queries.positions[static_cast<size_t>(query)];
  thread_local std::vector<uint32_t> ordered;  // [n]
  ordered.clear();
  std::array<float, kTileRows> logits;
  std::array<int32_t, kTileRows> positions;
  for (int64_t begin = 0; begin < n; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, n - begin);
    rows.load_positions(begin, count, positions.data());
    rows.load_keys(begin, count, keys);
    kernels.dot_rows(keys, dim, count, q, dim, logits.data());
    if (shape.softcap > 0.0f) kernels.softcap(logits.data(), count, shape.softcap);
    mask_logits(logits.data(), count, 1, positions.data(), &query_position, 1, shape.window);
    for (int64_t j = 0; j < count; ++j) ordered.push_back(ordered_bits(logits[static_cast<size_t>(j)]));
  }
  const Threshold threshold = find_threshold(ordered, wanted);
  int64_t equal_left = threshold.num_equal, sum = 0;
  for (int64_t j = n - 1; j >= 0; --j) {
    const uint32_t value = ordered[static_cast<size_t>(j)];
    if (value > threshold.value || (value == threshold.value && equal_left-- > 0)) sum += j;
  }
  item.out.mean_index.f32(head)[query] =
      wanted > 0 ? static_cast<float>(static_cast<double>(sum) / static_cast<double>(wanted)) : 0.0f;
}

}  // namespace restkv::cpu
