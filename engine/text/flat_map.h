// Two hash tables with open addressing, for the two lookups that tokenizing consists of: bytes -> id, and a pair of
// 32-bit numbers -> 64-bit value (merges, trie edges). Built once, then read by many threads.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace restkv {

inline uint64_t mix_bits(uint64_t x) {
  x *= 0x9E3779B97F4A7C15u;
  return x ^ (x >> 32);
}

inline uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  const char* data = bytes.data();
  size_t left = bytes.size();
  uint64_t chunk = 0;
  while (left >= 8) {
    std::memcpy(&chunk, data, 8);
    hash = mix_bits(hash ^ chunk);
    data += 8, left -= 8;
  }
  chunk = 0;
  for (size_t i = 0; i < left; ++i) chunk |= uint64_t{static_cast<unsigned char>(data[i])} << (8 * i);
  return mix_bits(hash ^ chunk);
}

// Keys are views: the caller keeps their bytes alive and in place.
class BytesIndex {
 public:
  void reserve(size_t count) { rehash(std::bit_ceil(count * 2 + 8)); }
  // False if the key is there already (its id stays).
  bool insert(std::string_view key, int32_t id) {
    if ((size_ + 1) * 2 > slots_.size()) rehash(std::bit_ceil((size_ + 1) * 4));
    Slot* slot = &slots_[position(key)];
    if (slot->id >= 0) return false;
    *slot = {key.data(), static_cast<uint32_t>(key.size()), id};
    ++size_;
    return true;
  }
  int32_t find(std::string_view key) const { return slots_.empty() ? -1 : slots_[position(key)].id; }
  size_t size() const { return size_; }

 private:
  struct Slot {
    const char* data = nullptr;
    uint32_t length = 0;
    int32_t id = -1;
  };
  size_t position(std::string_view key) const {
    const size_t mask = slots_.size() - 1;
    size_t at = hash_bytes(key) & mask;
    while (slots_[at].id >= 0 &&
           !(slots_[at].length == key.size() && std::memcmp(slots_[at].data, key.data(), key.size()) == 0)) {
      at = (at + 1) & mask;
    }
    return at;
  }
  void rehash(size_t capacity) {
    if (capacity <= slots_.size()) return;
    std::vector<Slot> old(capacity);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.id >= 0) slots_[position({slot.data, slot.length})] = slot;
    }
  }
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t size_ = 0;
};

// (left, right) -> value; left must not be 2^32-1.
class PairMap {
 public:
  static constexpr uint64_t kNone = ~uint64_t{0};
  void reserve(size_t count) { rehash(std::bit_ceil(count * 2 + 8)); }
  bool insert(uint32_t left, uint32_t right, uint64_t value) {
    if ((size_ + 1) * 2 > slots_.size()) rehash(std::bit_ceil((size_ + 1) * 4));
    const uint64_t key = uint64_t{left} << 32 | right;
    Slot* slot = &slots_[position(key)];
    if (slot->key == key) return false;
    *slot = {key, value};
    ++size_;
    return true;
  }
  uint64_t find(uint32_t left, uint32_t right) const {
    if (slots_.empty()) return kNone;
    return slots_[position(uint64_t{left} << 32 | right)].value;
  }
  size_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t key = kNone;
    uint64_t value = kNone;
  };
  size_t position(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t at = mix_bits(key) & mask;
    while (slots_[at].key != key && slots_[at].key != kNone) at = (at + 1) & mask;
    return at;
  }
  void rehash(size_t capacity) {
    if (capacity <= slots_.size()) return;
    std::vector<Slot> old(capacity);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kNone) slots_[position(slot.key)] = slot;
    }
  }
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t size_ = 0;
};

// Byte strings -> values >= 0, walked byte by byte; node 0 is the root.
class ByteTrie {
 public:
  static constexpr uint32_t kNoNode = ~uint32_t{0};
  bool insert(std::string_view key, int32_t value) {
    uint32_t node = 0;
    for (const char c : key) {
      uint32_t next = step(node, static_cast<unsigned char>(c));
      if (next == kNoNode) {
        next = static_cast<uint32_t>(values_.size());
        edges_.insert(node, static_cast<unsigned char>(c), next);
        values_.push_back(-1);
      }
      node = next;
    }
    if (values_[node] >= 0) return false;
    values_[node] = value;
    return true;
  }
  uint32_t step(uint32_t node, unsigned char byte) const {
    const uint64_t next = edges_.find(node, byte);
    return next == PairMap::kNone ? kNoNode : static_cast<uint32_t>(next);
  }
  int32_t value(uint32_t node) const { return values_[node]; }

 private:
  PairMap edges_;
  std::vector<int32_t> values_{-1};  // [nodes], -1: no key ends here
};

}  // namespace restkv
