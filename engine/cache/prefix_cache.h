// K and V of prompt beginnings that were seen before, in blocks of one page of tokens: a block is the L*K pages of S tokens
// and the unit of eviction. Blocks form chains; a block's key is a keyed 128-bit hash of its tokens and of the key before it
// (the first one's of a salt), and its tokens are compared on a hit.
//   absent -> (second sight) inserting: pages taken, a prefill writes them layer by layer -> visible -> evicted
// A visible block is pinned until the prompt that reads it has its first token. What is not pinned goes least recently used
// first, behind before front, and always before an admission fails; so does what is still being inserted. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/cache/page_pool.h"

namespace restkv {

// SipHash-2-4 with 128 bits of output.
using PrefixKey = std::array<uint64_t, 2>;
PrefixKey keyed_hash(const PrefixKey& secret, std::span<const std::byte> data);
struct PrefixKeyHash {
  size_t operator()(const PrefixKey& key) const { return static_cast<size_t>(key[0]); }
};

struct PrefixOptions {
  int32_t block_tokens = 16;    // S
  int64_t pages_per_block = 1;  // L*K
  int64_t max_pages = 0;        // 0: nothing is ever cached
  int64_t max_tokens = 0;       // of one prompt
};

class PrefixCache {
 public:
  // Blocks that one prefill writes; empty once an admission took their pages.
  struct Insertion {
    std::vector<int32_t> blocks;
    int64_t first_token = 0;  // of the first block
  };

  PrefixCache(PagePool& pool, const PrefixOptions& options, const PrefixKey& secret);

  // Keys of the whole blocks that begin `tokens`, at most max_tokens of them.
  std::vector<PrefixKey> keys(std::string_view salt, std::span<const int32_t> tokens) const;
  // Longest chain of visible blocks that begins the prompt, of at most `max_tokens` tokens.
  std::vector<int32_t> find(std::span<const PrefixKey> keys, std::span<const int32_t> tokens,
                            int64_t max_tokens) const;
  void pin(std::span<const int32_t> blocks);
  void unpin(std::span<const int32_t> blocks);

  // Takes pages for the blocks behind what is there already, as far as they were seen before; null: none. What was not is
  // remembered.
  std::unique_ptr<Insertion> begin_insert(std::span<const PrefixKey> keys, std::span<const int32_t> tokens);
  void finish_insert(std::unique_ptr<Insertion> insertion);  // all layers are written
  void abandon(std::unique_ptr<Insertion> insertion);

  // Pages that make_room can free, all or without those of `blocks`.
  int64_t reclaimable_pages(std::span<const int32_t> kept = {}) const;
  // Frees pages until the pool has `count`, if it can.
  void make_room(int64_t count);
  // Gives everything up that is not pinned.
  void clear() { make_room(pool_.total()); }

  // [L, K] pages of a block.
  std::span<const int32_t> pages(int32_t block) const { return blocks_[static_cast<size_t>(block)].pages; }
  int32_t block_tokens() const { return options_.block_tokens; }
  bool is_enabled() const { return options_.max_pages >= options_.pages_per_block; }
  int64_t num_pages() const { return num_pages_; }
  int64_t num_evicted() const { return num_evicted_; }  // blocks

 private:
  struct Block {
    PrefixKey key{};
    std::vector<int32_t> tokens;  // [S]
    std::vector<int32_t> pages;   // [L*K]; empty: the block is not in use
    int32_t num_readers = 0;
    bool is_visible = false;
    uint64_t last_use = 0;
  };
  bool has_tokens(const Block& block, std::span<const int32_t> tokens, size_t index) const;
  bool was_seen(const PrefixKey& key);
  bool evict_one();
  bool drop_insertion();
  void free_block(int32_t block);

  PagePool& pool_;
  PrefixOptions options_;
  PrefixKey secret_;
  std::vector<Block> blocks_;
  std::vector<int32_t> unused_;  // indices of blocks_
  std::unordered_map<PrefixKey, int32_t, PrefixKeyHash> by_key_;
  std::set<std::pair<uint64_t, int32_t>> idle_;  // (last use, block): visible and not pinned
  std::vector<Insertion*> insertions_;
  // Keys seen once, the oldest forgotten.
  std::unordered_set<PrefixKey, PrefixKeyHash> seen_;
  std::vector<PrefixKey> seen_ring_;
  size_t seen_next_ = 0;
  uint64_t clock_ = 0;
  int64_t num_pages_ = 0, num_evicted_ = 0;
};

}  // namespace restkv
