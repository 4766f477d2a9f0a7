// What a prompt has to do with the prefix cache: which of its first tokens are there already, and which of its blocks are
// written while it is prefilled. The first choice of a request speaks for all of them. A hit is read as the first entries of a
// layer, from shared pages that nobody writes; at least the last W prompt tokens are always computed.
//   [0, first_row) read | [first_row, prefill_len) computed
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/cache/kv_cache.h"
#include "engine/cache/prefix_cache.h"
#include "engine/sequence.h"
#include "kernels/backend.h"

namespace restkv {

// Of one sequence; hangs on its memory.
struct PrefixUse {
  std::vector<PrefixKey> keys;  // decided when it is queued; empty: it passes the cache by
  int64_t max_hit = 0;          // tokens
  std::vector<int32_t> chain;   // pinned blocks, from the first on
  std::vector<int32_t> pages;   // [L, K, hit blocks]
  std::vector<int32_t> len;     // [K] first_row, as the entries of a table; empty: no hit
  std::unique_ptr<PrefixCache::Insertion> insertion;
};

class PromptPrefixes {
 public:
  PromptPrefixes(Backend& backend, KvCache& cache, double fraction, int64_t max_tokens);

  // The keys of a sequence that was just queued, of at most `max_hit` tokens read.
  void prepare(const Sequence& sequence, int64_t max_hit, PrefixUse& use) const;
  // Whether `pages` can be had, with what the prompt would read or else without.
  bool can_take(const Sequence& sequence, const PrefixUse& use, int64_t pages) const;
  // Pins what the prompt reads if `pages` can be had beside it, and makes room for them. Sets first_row.
  void make_room(Sequence& sequence, PrefixUse& use, int64_t pages);
  // After the sequence's own pages were taken: reserves blocks to write.
  void begin_insert(const Sequence& sequence, PrefixUse& use);

  // The hit's entries of one layer; kv_len null: none.
  HeadTables tables(const PrefixUse& use, int64_t layer) const;
  // Rows of one layer from first_row on [N, K*D] are done: those of blocks to write are copied.
  void store_layer(const Sequence& sequence, const PrefixUse& use, int64_t layer, ConstTensor k,
                   ConstTensor v, std::span<const int32_t> positions) const;
  // The first token is drawn, or the request ended before; `is_good`: the blocks become visible.
  void finish(PrefixUse& use, bool is_good);

  const PrefixCache& cache() const { return prefixes_; }
  void clear() { prefixes_.clear(); }

 private:
  Backend& backend_;
  KvCache& cache_;
  PrefixCache prefixes_;
};

}  // namespace restkv
