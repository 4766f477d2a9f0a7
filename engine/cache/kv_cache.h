// The KV cache of all sequences: one pool of pages, and for each sequence its page tables and lengths per
// (layer, KV head), allocated whole at admission. `position` and `kv_len` are different things: kv_len counts
// entries of one head.
//   table of (l, h): pages [0, ceil(kv_len / S)) hold entries | the rest is reserved for what the answer may
//   still need
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/cache/page_pool.h"
#include "kernels/backend.h"

namespace restkv {

struct CacheShape {
  int64_t num_layers = 0;    // L
  int64_t num_kv_heads = 0;  // K
  int64_t head_dim = 0;      // D
  DType dtype = DType::kF32;
};

// Pages and lengths of one sequence. Move-only in spirit: it lives in its sequence and is given back once.
struct SequenceCache {
  std::vector<int32_t> pages;   // [L, K, stride] page ids
  std::vector<int32_t> kv_len;  // [L, K] entries
  int32_t stride = 0;           // page ids per head
  int32_t capacity = 0;         // entries every head has room for
};

class KvCache {
 public:
  KvCache(Backend& backend, const CacheShape& shape, int64_t num_pages);

  static int64_t page_bytes(const Backend& backend, const CacheShape& shape);
  int64_t pages_for(int64_t entries) const;  // L * K * ceil(entries / S)
  bool can_admit(int64_t entries) const { return pool_.can_take(pages_for(entries)); }
  SequenceCache admit(int64_t entries);
  void release(SequenceCache& sequence);

  HeadTables tables(const SequenceCache& sequence, int64_t layer) const;
  // `rows` entries were appended to every head of the layer.
  void advance(SequenceCache& sequence, int64_t layer, int64_t rows) const;
  const PagedCacheView& view() const { return view_; }
  const PagePool& pool() const { return pool_; }

 private:
  CacheShape shape_;
  std::unique_ptr<DeviceBuffer> memory_;
  PagedCacheView view_;
  PagePool pool_;
};

}  // namespace restkv
