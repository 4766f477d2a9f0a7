// The KV cache of all sequences: one pool of pages, and for each sequence its page tables and lengths per (layer, KV
// head), allocated whole at admission. `position` and `kv_len` are different things: kv_len counts entries of one head.
//   table of (l, h): pages [0, ceil(kv_len / S)) hold entries | the rest is reserved for what the answer may still need
// Beside the entries a sequence may hold a ring of its last W queries and one f32 an entry (h2o), in pages of the same pool.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/cache/page_pool.h"
#include "engine/cache/table_store.h"
#include "kernels/backend.h"

namespace restkv {

struct CacheShape {
  int64_t num_layers = 0;    // L
  int64_t num_kv_heads = 0;  // K
  int64_t group = 1;         // G, query heads of a KV head
  int64_t head_dim = 0;      // D
  DType dtype = DType::kF32;
};

// What one sequence takes from the pool, as numbers; the same for the whole life of the sequence.
struct CacheReservation {
  std::vector<int32_t> entries;    // [L*K] entries each head has room for
  std::vector<bool> shared_layer;  // [L] `ada`: the heads share the layer's pages, see KvCache::share_layer
  int32_t ring_window = 0;         // W of the query ring; 0: none
  std::vector<bool> ring_layer;    // [L] layers that have a ring
  bool has_sums = false;           // one f32 for each entry
};

// Pages and lengths of one sequence. It lives in its sequence's memory and is given back once.
struct SequenceCache {
  // [K, width] page ids of a layer begin at `begin`; ids beyond a head's own pages are -1.
  struct Table {
    size_t begin = 0;
    int32_t width = 0;
  };
  std::vector<int32_t> ids;                // page ids of all tables
  const int32_t* resident = nullptr;       // the same on the device, where there is room for them
  std::vector<Table> entries, ring, sums;  // [L]; ring and sums: width 0 where there is none
  std::vector<int32_t> spare;  // pages of shared layers that no head has yet, by layer: [spare_begin[l], ..)
  std::vector<size_t> spare_begin;  // [L + 1]
  std::vector<int32_t> kv_len;      // [L, K] entries
  std::vector<int32_t> capacity;    // [L, K] entries a head has pages for
  std::vector<int32_t> sums_len;    // [L, K] entries that have a sum
  int32_t ring_window = 0;
  int64_t num_pages = 0;
  std::vector<int32_t> owned;  // [num_pages] every page, once
  int32_t shared_entries =
      0;  // the first entries of every head lie in pages of another sequence too; never written again
};

class KvCache {
 public:
  KvCache(Backend& backend, const CacheShape& shape, int64_t num_pages);

  static int64_t page_bytes(const Backend& backend, const CacheShape& shape);
  // Pages of a reservation, without a cache: the plan and the admission count alike.
  static int64_t pages_for(const CacheReservation& reservation, const CacheShape& shape, int32_t slots);
  // Page ids and lengths that a sequence of this reservation holds on the host.
  static int64_t table_entries(const CacheReservation& reservation, const CacheShape& shape, int32_t slots);
  int64_t pages_for(const CacheReservation& reservation) const {
    return pages_for(reservation, shape_, view_.slots);
  }
  bool can_admit(const CacheReservation& reservation) const { return pool_.can_take(pages_for(reservation)); }
  // The first `shared_entries` entries (whole pages) of every head are those of `other`, which holds room for them.
  SequenceCache admit(const CacheReservation& reservation, const SequenceCache* other = nullptr,
                      int32_t shared_entries = 0);
  void release(SequenceCache& sequence);

  HeadTables tables(const SequenceCache& sequence, int64_t layer) const;
  QueryRing ring(const SequenceCache& sequence, int64_t layer) const;  // window 0: none
  EntrySums sums(const SequenceCache& sequence, int64_t layer) const;  // pages null: none
  // `rows` entries were appended to every head of the layer.
  void advance(SequenceCache& sequence, int64_t layer, int64_t rows) const;
  // Hands the pages of a shared layer to its heads: room for entries[h] each. Before the layer holds anything.
  void share_layer(SequenceCache& sequence, int64_t layer, const int32_t* entries);
  const PagedCacheView& view() const { return view_; }
  const PagePool& pool() const { return pool_; }
  PagePool& pool() { return pool_; }
  const CacheShape& shape() const { return shape_; }

 private:
  CacheShape shape_;
  std::unique_ptr<DeviceBuffer> memory_;
  PagedCacheView view_;
  PagePool pool_;
  TableStore tables_;
};

}  // namespace restkv
