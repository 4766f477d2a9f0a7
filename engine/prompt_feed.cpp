// Rounds of append, attend, cut; sequences that are fed together share the calls of a round.
#include "engine/prompt_feed.h"

#include <algorithm>

namespace restkv {

void PromptFeed::add(Sequence& sequence, int64_t row, int32_t num_rows, const Tensor& k, const Tensor& v) {
  feeds_.push_back({&sequence, row, num_rows, k, v});
}

void PromptFeed::append_stores(std::vector<StoreSegment>& stores) const {
  for (const Feed& feed : feeds_) stores.push_back({feed.row, feed.num_rows, feed.k, feed.v, {}});
}

void PromptFeed::run_layer(int64_t layer, std::span<const int32_t> positions) {
  const int32_t num_kv_heads = static_cast<int32_t>(transformer_.config().num_kv_heads);
  for (Feed& feed : feeds_) feed.num_done = 0;
  for (;;) {
    segments_.clear();
    rows_.clear();
    due_.clear();
    for (Feed& feed : feeds_) {
      if (feed.num_done == feed.num_rows) continue;
      Sequence& sequence = *feed.sequence;
      SequenceCache& cache = sequence.memory->cache;
      const int32_t tokens = sequence.position + feed.num_done;
      const int32_t count = std::min(feed.num_rows - feed.num_done, Evictor::room(sequence, layer, tokens));
      CHECK(count > 0) << "layer " << layer << " is full at " << tokens << " tokens and was not cut";
      const int64_t row = feed.row + feed.num_done;
      const HeadTables tables = cache_.tables(cache, layer);
      backend_.store_pages(
          {.k = feed.k.row_range(feed.num_done, count),
           .v = feed.v.row_range(feed.num_done, count),
           .positions = positions.subspan(static_cast<size_t>(row), static_cast<size_t>(count)),
           .tables = tables,
           .num_kv_heads = num_kv_heads,
           .cache = cache_.view()});
      cache_.advance(cache, layer, count);
      segments_.push_back({row, count, tables});
      rows_.push_back({&sequence, row, count});
      feed.num_done += count;
      if (feed.num_done < feed.num_rows) due_.push_back({&sequence, layer, tokens + count});
    }
    if (segments_.empty()) return;
    evictor_.store_queries(layer, transformer_.queries(0, static_cast<int64_t>(positions.size())), positions,
                           rows_);
    transformer_.attend_pages(layer, positions, segments_, cache_.view());
    evictor_.cut(due_);
  }
}

}  // namespace restkv
