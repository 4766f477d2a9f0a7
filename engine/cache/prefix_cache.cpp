// Two maps (by key, by age) over a vector of blocks.
#include "engine/cache/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/base/check.h"

namespace restkv {
namespace {

constexpr size_t kMaxSeen = 1 << 16;

struct SipState {
  uint64_t v0, v1, v2, v3;
  void round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
  uint64_t digest() const { return v0 ^ v1 ^ v2 ^ v3; }
};

}  // namespace

// Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with the reference code's 128-bit finish.
PrefixKey keyed_hash(const PrefixKey& secret, std::span<const std::byte> data) {
  SipState s = {secret[0] ^ 0x736f6d6570736575ull, secret[1] ^ 0x646f72616e646f6dull ^ 0xee,
                secret[0] ^ 0x6c7967656e657261ull, secret[1] ^ 0x7465646279746573ull};
  const auto absorb = [&s](uint64_t word) {
    s.v3 ^= word;
    s.round();
    s.round();
    s.v0 ^= word;
  };
  size_t at = 0;
  for (; at + 8 <= data.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data.data() + at, 8);
    absorb(word);
  }
  uint64_t last = uint64_t{data.size() & 0xff} << 56;
  for (size_t i = 0; at + i < data.size(); ++i) last |= std::to_integer<uint64_t>(data[at + i]) << (8 * i);
  absorb(last);
  s.v2 ^= 0xee;
  for (int i = 0; i < 4; ++i) s.round();
  PrefixKey out;
  out[0] = s.digest();
  s.v1 ^= 0xdd;
  for (int i = 0; i < 4; ++i) s.round();
  out[1] = s.digest();
  return out;
}

PrefixCache::PrefixCache(PagePool& pool, const PrefixOptions& options, const PrefixKey& secret)
    : pool_(pool), options_(options), secret_(secret) {}

std::vector<PrefixKey> PrefixCache::keys(std::string_view salt, std::span<const int32_t> tokens) const {
  std::vector<PrefixKey> keys;
  if (!is_enabled()) return keys;
  const auto size = static_cast<size_t>(options_.block_tokens);
  const size_t count = std::min(tokens.size(), static_cast<size_t>(options_.max_tokens)) / size;
  PrefixKey before = keyed_hash(secret_, std::as_bytes(std::span(salt.data(), salt.size())));
  std::vector<std::byte> data(sizeof before + size * sizeof(int32_t));
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(data.data(), before.data(), sizeof before);
    std::memcpy(data.data() + sizeof before, tokens.data() + i * size, size * sizeof(int32_t));
    before = keyed_hash(secret_, data);
    keys.push_back(before);
  }
  return keys;
}

bool PrefixCache::has_tokens(const Block& block, std::span<const int32_t> tokens, size_t index) const {
  const auto size = static_cast<size_t>(options_.block_tokens);
  return std::equal(block.tokens.begin(), block.tokens.end(),
                    tokens.begin() + static_cast<int64_t>(index * size));
}

std::vector<int32_t> PrefixCache::find(std::span<const PrefixKey> keys, std::span<const int32_t> tokens,
                                       int64_t max_tokens) const {
  std::vector<int32_t> chain;
  const int64_t most = std::max<int64_t>(0, max_tokens) / options_.block_tokens;
  for (size_t i = 0; i < keys.size() && static_cast<int64_t>(i) < most; ++i) {
    const auto found = by_key_.find(keys[i]);
    if (found == by_key_.end()) break;
    const Block& block = blocks_[static_cast<size_t>(found->second)];
    if (!block.is_visible || !has_tokens(block, tokens, i)) break;
    chain.push_back(found->second);
  }
  return chain;
}

void PrefixCache::pin(std::span<const int32_t> blocks) {
  for (const int32_t id : blocks) {
    Block& block = blocks_[static_cast<size_t>(id)];
    CHECK(block.is_visible) << "block " << id << " is not there";
    if (block.num_readers++ == 0) idle_.erase({block.last_use, id});
  }
}

void PrefixCache::unpin(std::span<const int32_t> blocks) {
  // From the back: a block is always older than the one before it.
  for (size_t i = blocks.size(); i-- > 0;) {
    Block& block = blocks_[static_cast<size_t>(blocks[i])];
    CHECK(block.num_readers > 0) << "block " << blocks[i] << " has no reader";
    block.last_use = ++clock_;
    if (--block.num_readers == 0) idle_.insert({block.last_use, blocks[i]});
  }
}

bool PrefixCache::was_seen(const PrefixKey& key) {
  if (seen_.contains(key)) return true;
  if (seen_ring_.size() < kMaxSeen) {
    seen_ring_.push_back(key);
  } else {
    seen_.erase(seen_ring_[seen_next_]);
    seen_ring_[seen_next_] = key;
    seen_next_ = (seen_next_ + 1) % kMaxSeen;
  }
  seen_.insert(key);
  return false;
}

std::unique_ptr<PrefixCache::Insertion> PrefixCache::begin_insert(std::span<const PrefixKey> keys,
                                                                  std::span<const int32_t> tokens) {
  const auto size = static_cast<size_t>(options_.block_tokens);
  size_t begin = 0;
  while (begin < keys.size() && by_key_.contains(keys[begin])) {
    // A block that another prefill still writes may be given up: nothing is chained to it.
    if (!blocks_[static_cast<size_t>(by_key_.at(keys[begin]))].is_visible) return nullptr;
    ++begin;
  }
  size_t end = begin;
  while (end < keys.size() && was_seen(keys[end])) ++end;
  for (size_t i = end; i < keys.size(); ++i) was_seen(keys[i]);
  auto insertion = std::make_unique<Insertion>();
  insertion->first_token = static_cast<int64_t>(begin * size);
  for (size_t i = begin; i < end && !by_key_.contains(keys[i]); ++i) {
    const int64_t needed = options_.pages_per_block;
    while ((num_pages_ + needed > options_.max_pages || !pool_.can_take(needed)) && evict_one()) {
    }
    if (num_pages_ + needed > options_.max_pages || !pool_.can_take(needed)) break;
    // Its own chain may have been the oldest: what is behind a gap would never be found.
    if (i == begin && begin > 0 && !by_key_.contains(keys[begin - 1])) break;
    int32_t id = 0;
    if (unused_.empty()) {
      id = static_cast<int32_t>(blocks_.size());
      blocks_.emplace_back();
    } else {
      id = unused_.back();
      unused_.pop_back();
    }
    Block& block = blocks_[static_cast<size_t>(id)];
    block.key = keys[i];
    block.tokens.assign(tokens.begin() + static_cast<int64_t>(i * size),
                        tokens.begin() + static_cast<int64_t>((i + 1) * size));
    block.pages.resize(static_cast<size_t>(needed));
    pool_.take_cached(block.pages);
    num_pages_ += needed;
    by_key_.emplace(keys[i], id);
    insertion->blocks.push_back(id);
  }
  if (insertion->blocks.empty()) return nullptr;
  insertions_.push_back(insertion.get());
  return insertion;
}

void PrefixCache::finish_insert(std::unique_ptr<Insertion> insertion) {
  for (size_t i = insertion->blocks.size(); i-- > 0;) {
    const int32_t id = insertion->blocks[i];
    Block& block = blocks_[static_cast<size_t>(id)];
    block.is_visible = true;
    block.last_use = ++clock_;
    idle_.insert({block.last_use, id});
  }
  std::erase(insertions_, insertion.get());
}

void PrefixCache::abandon(std::unique_ptr<Insertion> insertion) {
  for (const int32_t id : insertion->blocks) free_block(id);
  std::erase(insertions_, insertion.get());
}

void PrefixCache::free_block(int32_t id) {
  Block& block = blocks_[static_cast<size_t>(id)];
  CHECK(block.num_readers == 0) << "block " << id << " has readers";
  pool_.give_back_cached(block.pages);
  num_pages_ -= static_cast<int64_t>(block.pages.size());
  by_key_.erase(block.key);
  block = Block{};
  unused_.push_back(id);
}

bool PrefixCache::evict_one() {
  if (idle_.empty()) return false;
  const int32_t id = idle_.begin()->second;
  idle_.erase(idle_.begin());
  free_block(id);
  ++num_evicted_;
  return true;
}

bool PrefixCache::drop_insertion() {
  if (insertions_.empty()) return false;
  Insertion& insertion = *insertions_.back();
  insertions_.pop_back();
  for (const int32_t id : insertion.blocks) free_block(id);
  insertion.blocks.clear();
  return true;
}

int64_t PrefixCache::reclaimable_pages(std::span<const int32_t> kept) const {
  auto count = static_cast<int64_t>(idle_.size());
  for (const Insertion* insertion : insertions_) count += static_cast<int64_t>(insertion->blocks.size());
  for (const int32_t id : kept) count -= blocks_[static_cast<size_t>(id)].num_readers == 0;
  return count * options_.pages_per_block;
}

void PrefixCache::make_room(int64_t count) {
  while (!pool_.can_take(count) && (evict_one() || drop_insertion())) {
  }
}

}  // namespace restkv
